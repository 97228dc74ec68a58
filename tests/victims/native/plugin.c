// A library that is opened while its program runs.
#ifndef WORK
#define WORK plugin_work
#endif

volatile unsigned long plugin_sink;

__attribute__((noinline)) static void WORK(int rounds) {
    unsigned long x = 1;
    for (int i = 0; i < rounds; i++) x = x * 6364136223846793005UL + i;
    plugin_sink = x;
}

int plugin_run(int rounds) {
    WORK(rounds);
    return (int)plugin_sink + 1;
}
