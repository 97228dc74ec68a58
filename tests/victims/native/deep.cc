// 41 frames without frame pointers, each of a different size; leaf_a takes 60 % of the time and leaf_b 40 %.
volatile unsigned long sink;

// One loop for both leaves, so that it is equally fast in both.
__attribute__((noinline)) unsigned long work(unsigned long x, int rounds) {
    for (int i = 0; i < rounds; i++) x = x * 6364136223846793005UL + i;
    return x;
}

__attribute__((noinline)) void leaf_a(int rounds) { sink = work(1, rounds); }

__attribute__((noinline)) void leaf_b(int rounds) { sink = work(3, rounds); }

template <int Depth> __attribute__((noinline)) int deep(int rounds) {
    char space[16 + Depth * 3];
    asm volatile("" : : "r"(space) : "memory");
    int found;
    if constexpr (Depth == 0) {
        leaf_a(rounds * 6000);
        leaf_b(rounds * 4000);
        found = 1;
    } else {
        found = deep<Depth - 1>(rounds) + 1;
    }
    asm volatile("" : : "r"(space) : "memory");
    return found;
}

int main() {
    for (;;) sink = deep<40>(100);
}
