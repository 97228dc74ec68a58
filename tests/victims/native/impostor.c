// Looks like CPython 3.11 to whoever goes by exported names, and is none: argv[1] says how it lies.
#include <pthread.h>
#include <stdint.h>
#include <string.h>

static char interpreter[4096], thread[4096], cframe[4096], frame[4096], code[4096];
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

int main(int argc, char **argv)
{
    const char *lie = argc > 1 ? argv[1] : "";
    const void *self = (const void *)pthread_self();
    int64_t length = 1 << 20;
    uint32_t state = 1 << 2 | 1 << 5 | 1 << 6;
    point(_PyRuntime, 40, interpreter);
    point(interpreter, 16, thread);
    point(thread, 8, thread);
    point(thread, 56, cframe);
    point(thread, 152, self);
    point(cframe, 8, frame);
    // A function that is its own caller, with a name of a megabyte that would clear a terminal.
    point(frame, 32, code);
    point(frame, 48, frame);
    point(frame, 56, code + 184);
    point(code, 8, PyCode_Type);
    point(code, 112, name);
    point(code, 128, name);
    point(code, 136, lines);
    memcpy(name + 16, &length, 8);
    memcpy(name + 32, &state, 4);
    for (int at = 48; at < (1 << 20) + 48; at += 4)
        memcpy(name + at, "\033[2J", 4);
    length = -1;
    memcpy(lines + 16, &length, 8);
    if (!strcmp(lie, "threads"))
        point(thread, 152, 0);
    if (!strcmp(lie, "garbage"))
        memset(_PyRuntime, 0xa5, sizeof _PyRuntime);
    if (!strcmp(lie, "code"))
        point(code, 8, code);
    return (int)_PyEval_EvalFrameDefault(0) + 1;
}
