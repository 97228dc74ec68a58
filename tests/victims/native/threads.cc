// Eight threads that work, a few frames below the thread's start: 60 % in leaf_a, 40 % in leaf_b.
#include <thread>
#include <vector>

// One loop for both leaves. Of two copies, one may end at a 32-byte boundary and be a tenth slower on many Intel
// processors (the "JCC erratum"): one machine twice measured 57 % instead of 60 %.
__attribute__((noinline)) unsigned long work(unsigned long seed, int rounds) {
    for (int i = 0; i < rounds; i++) seed = seed * 6364136223846793005UL + i;
    return seed;
}

__attribute__((noinline)) unsigned long leaf_a(unsigned long seed) { return work(seed, 60000) + 1; }

__attribute__((noinline)) unsigned long leaf_b(unsigned long seed) { return work(seed, 40000) + 3; }

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
