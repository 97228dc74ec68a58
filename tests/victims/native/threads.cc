// Eight threads that work, a few frames below the thread's start: 60 % in leaf_a, 40 % in leaf_b.
#include <thread>
#include <vector>

static inline unsigned long work(unsigned long seed, int rounds) {
    for (int i = 0; i < rounds; i++) seed = seed * 6364136223846793005UL + i;
    return seed;
}

// Rounds differ in length. Equal ones can keep step with the scheduler (100,000 steps at 3 GHz are a thirtieth of its 4 ms):
// then each thread is found where it was found before, and a machine told 57 % twice.
static inline int scale(unsigned long seed) { return 5000 + (seed >> 33) % 10000; }

__attribute__((noinline)) unsigned long leaf_a(unsigned long seed, int scale) { return work(seed, 6 * scale); }

__attribute__((noinline)) unsigned long leaf_b(unsigned long seed, int scale) { return work(seed, 4 * scale); }

__attribute__((noinline)) unsigned long below(unsigned long seed, int depth) {
    volatile unsigned long kept = seed;
    return (depth ? below(seed, depth - 1) : leaf_a(seed, scale(seed)) + leaf_b(seed, scale(seed))) + kept;
}

int main() {
    std::vector<std::thread> all;
    for (unsigned long n = 0; n < 8; n++)
        all.emplace_back([n] {
            for (volatile unsigned long sum = n;;) sum = below(sum, 5);
        });
    for (auto &thread : all) thread.join();
}
