// Eight threads that work, a few frames below the thread's start.
#include <thread>
#include <vector>

static inline unsigned long work(unsigned long seed, int rounds) {
    for (int i = 0; i < rounds; i++) seed = seed * 6364136223846793005UL + i;
    return seed;
}

__attribute__((noinline)) unsigned long leaf_a(unsigned long seed) { return work(seed, 60000); }

__attribute__((noinline)) unsigned long leaf_b(unsigned long seed) { return work(seed, 40000); }

__attribute__((noinline)) unsigned long below(unsigned long seed, int depth) {
    volatile unsigned long kept = seed;
    return (depth ? below(seed, depth - 1) : leaf_a(seed) + leaf_b(seed)) + kept;
}

int main() {
    std::vector<std::thread> all;
    for (unsigned long n = 0; n < 8; n++)
        all.emplace_back([n] {
            for (volatile unsigned long sum = n;;) sum = below(sum, 5);
        });
    for (auto &thread : all) thread.join();
}
