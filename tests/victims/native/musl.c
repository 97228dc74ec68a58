// Sorts, so that libc's code calls back into the program's, and is interrupted by a signal now and then.
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>

volatile unsigned long sink;

void handler(int number) {
    unsigned long x = number;
    for (int i = 0; i < 200000; i++) x = x * 6364136223846793005UL + i;
    sink = x;
}

int compare(const void *one, const void *other) {
    int a = *(const int *)one, b = *(const int *)other;
    for (int i = 0; i < 50; i++) sink++;
    return (a > b) - (a < b);
}

__attribute__((noinline)) void sorts(void) {
    int numbers[500];
    for (int i = 0; i < 500; i++) numbers[i] = i * 7919 % 499;
    qsort(numbers, 500, sizeof *numbers, compare);
    sink += numbers[0];
}

int main(void) {
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGPROF, &action, 0);
    struct itimerval every = {{0, 3000}, {0, 3000}};
    setitimer(ITIMER_PROF, &every, 0);
    for (;;) sorts();
}
