// Eight threads that work, a few frames below the thread's start.
#include <thread>
#include <vector>

__attribute__((noinline)) unsigned long work(unsigned long seed) {
    for (int i = 0; i < 100000; i++) seed = seed * 6364136223846793005UL + i;
    return seed;
}

__attribute__((noinline)) unsigned long below(unsigned long seed, int depth) {
    volatile unsigned long kept = seed;
    return (depth ? below(seed, depth - 1) : work(seed)) + kept;
}

int main() {
    std::vector<std::thread> all;
    for (unsigned long n = 0; n < 8; n++)
        all.emplace_back([n] {
            for (volatile unsigned long sum = n;;) sum = below(sum, 5);
        });
    for (auto &thread : all) thread.join();
}
