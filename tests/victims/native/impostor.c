// Exports the symbols of CPython 3.11 but is not CPython. Each thread presents malformed interpreter state, of the kind
// that its name says.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>

enum { FRAMES, CODE, GARBAGE, THREADS, LIES };
static const char *const names[LIES] = {"frames", "code", "garbage", "threads"};

static char interpreter[4096], thread[LIES][512], cframe[LIES][64], frame[LIES][128], code[LIES][512];
static char name[(1 << 20) + 64], lines[64];

char _PyRuntime[1 << 17];
char PyCode_Type[512];
const unsigned long Py_Version = 0x030b0200;

__attribute__((noinline)) unsigned long _PyEval_EvalFrameDefault(unsigned long seed)
{
    for (;;)
        for (int i = 0; i < 1000000; i++)
            __asm__ volatile("" : "+r"(seed));
    return seed;
}

static void point(char *structure, int at, const void *to) { memcpy(structure + at, &to, 8); }

static void *lie(void *which)
{
    int own = (int)(intptr_t)which;
    pthread_setname_np(pthread_self(), names[own]);
    // The last thread is missing in the list of threads.
    if (own != THREADS)
        point(thread[own], 152, (void *)pthread_self());
    return (void *)_PyEval_EvalFrameDefault(0);
}

int main(void)
{
    int64_t length = 1 << 20;
    uint32_t state = 1 << 2 | 1 << 5 | 1 << 6;
    point(_PyRuntime, 40, interpreter);
    point(interpreter, 16, thread[0]);
    for (int own = 0; own < THREADS; own++) {
        // An endless list of threads, and functions that are their own callers.
        point(thread[own], 8, thread[(own + 1) % THREADS]);
        point(thread[own], 56, cframe[own]);
        point(cframe[own], 8, frame[own]);
        point(cframe[own], 16, cframe[own]);
        point(frame[own], 32, code[own]);
        point(frame[own], 48, frame[own]);
        point(frame[own], 56, code[own] + 184);
        point(code[own], 8, PyCode_Type);
        point(code[own], 112, name);
        point(code[own], 128, name);
        point(code[own], 136, lines);
    }
    point(code[CODE], 8, code);
    memset(cframe[GARBAGE], 0xa5, sizeof cframe[GARBAGE]);
    // A name of a megabyte that would clear a terminal.
    memcpy(name + 16, &length, 8);
    memcpy(name + 32, &state, 4);
    for (int at = 48; at < (1 << 20) + 48; at += 4)
        memcpy(name + at, "\033[2J", 4);
    length = -1;
    memcpy(lines + 16, &length, 8);
    pthread_t started;
    for (intptr_t own = 1; own < LIES; own++)
        pthread_create(&started, 0, lie, (void *)own);
    lie((void *)FRAMES);
    return 0;
}
