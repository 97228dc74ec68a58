// Works on its own stack and on another one, in turns: a coroutine of libc (`context`), one that begins as Boost's contexts do
// (`fiber`), one that returns to data, as a greenlet whose caller's frames were overwritten (`overwritten`), or a signal's
// handler (`signal`).
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define STACK 65536

volatile unsigned long sink;

__attribute__((noinline)) void work(void) {
    unsigned long x = 1;
    for (int i = 0; i < 200000; i++) x = x * 6364136223846793005UL + i;
    sink = x;
}

__attribute__((noinline)) void on_own_stack(void) {
    work();
    sink++;
}

__attribute__((noinline)) void on_other_stack(void) {
    work();
    sink++;
}

static ucontext_t outer, inner;

static void coroutine(void) {
    for (;;) {
        on_other_stack();
        swapcontext(&inner, &outer);
    }
}

static void run_context(void) {
    getcontext(&inner);
    inner.uc_stack.ss_sp = malloc(STACK);
    inner.uc_stack.ss_size = STACK;
    inner.uc_link = &outer;
    makecontext(&inner, coroutine, 0);
    for (;;) {
        swapcontext(&outer, &inner);
        on_own_stack();
    }
}

// No call frame information. A fiber begins with the address of `fiber_end` in %rbp, and its function in %rbx.
__asm__(".text\n"
        "switch_to:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
        "make_fiber:\n"
        "lea fiber_begin(%rip), %rax\nmov %rax, 48(%rdi)\n"
        "lea fiber_end(%rip), %rax\nmov %rax, 40(%rdi)\nmov %rsi, 32(%rdi)\nret\n"
        "fiber_begin:\n"
        "push %rbp\njmp *%rbx\n"
        "fiber_end:\n"
        "hlt\n");
void switch_to(void **from, void *to);
void make_fiber(void *stack, void (*function)(void));

static void *own, *other;

static void fiber(void) {
    for (;;) {
        on_other_stack();
        switch_to(&other, own);
    }
}

static void run_fiber(int is_overwritten) {
    // The words above the fiber's first frame are 0.
    void **frame = (void **)((char *)calloc(1, STACK) + STACK - 256);
    other = frame;
    if (is_overwritten) {
        frame[6] = (void *)fiber;
        frame[7] = frame;
    } else {
        make_fiber(frame, fiber);
    }
    for (;;) {
        switch_to(&own, other);
        on_own_stack();
    }
}

static void handler(int number) { on_other_stack(); }

static void run_signal(void) {
    stack_t stack = {.ss_sp = malloc(STACK), .ss_size = STACK};
    sigaltstack(&stack, 0);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, 0);
    for (;;) {
        raise(SIGUSR1);
        on_own_stack();
    }
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    if (!strcmp(kind, "context")) run_context();
    if (!strcmp(kind, "fiber")) run_fiber(0);
    if (!strcmp(kind, "overwritten")) run_fiber(1);
    if (!strcmp(kind, "signal")) run_signal();
    return 1;
}
