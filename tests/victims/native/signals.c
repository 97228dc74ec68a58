// Works in a signal handler that interrupts work: both must lead to main.
#include <signal.h>
#include <sys/time.h>

volatile unsigned long sink;

__attribute__((noinline)) void work(int rounds) {
    unsigned long x = 1;
    for (int i = 0; i < rounds; i++) x = x * 6364136223846793005UL + i;
    sink = x;
}

void handler(int number) {
    work(number * 20000);
    sink++;
}

__attribute__((noinline)) void interrupted(void) {
    for (;;) work(100);
}

int main(void) {
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGPROF, &action, 0);
    struct itimerval every = {{0, 2000}, {0, 2000}};
    setitimer(ITIMER_PROF, &every, 0);
    interrupted();
    return 0;
}
