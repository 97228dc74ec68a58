// Functions that are reached in each of the ways that a compiler has: called, passed by address, from a table of constants,
// from a table of variables, and by a tail call.
#include <stdlib.h>
#include <time.h>

volatile unsigned long sink;

__attribute__((noinline)) void called(unsigned long turns) {
    for (unsigned long i = 0; i < turns; i++) sink += i;
}

static int passed(const void *one, const void *other) {
    called(1000);
    return *(const int *)one - *(const int *)other;
}

static void from_constants(unsigned long turns) {
    called(turns);
    sink++;
}

static void from_constants_too(unsigned long turns) {
    called(turns / 2);
    sink += 2;
}

static void from_variables(unsigned long turns) {
    called(turns);
    sink += 3;
}

static void (*const constants[])(unsigned long) = {from_constants, from_constants_too};
static void (*variables[])(unsigned long) = {from_variables, from_constants};

__attribute__((noinline)) static void calls_at_its_end(unsigned long turns) {
    sink += 4;
    called(turns);
}

__attribute__((noinline)) static void switches(int which, unsigned long turns) {
    switch (which) {
    case 0: called(turns); break;
    case 1: sink += turns; called(turns / 3); break;
    case 2: sink ^= turns; called(turns / 5); break;
    case 3: sink |= turns; called(turns / 7); break;
    case 4: sink &= turns; called(turns / 11); break;
    case 5: sink -= turns; called(turns / 13); break;
    default: sink = 0;
    }
    sink++;
}

int main(int count, char **words) {
    time_t end = time(0) + (count > 1 ? atoi(words[1]) : 30);
    int numbers[] = {3, 1, 2, (int)sink};
    for (int turn = 0; time(0) < end; turn++) {
        qsort(numbers, 4, sizeof numbers[0], passed);
        constants[turn & 1](100000);
        variables[turn & 1](100000);
        calls_at_its_end(100000);
        switches(turn % 7, 100000);
    }
}
