// Copies its own code to anonymous memory at the same addresses, as programs do that want their code in huge pages, and then
// runs it.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

volatile unsigned long sink;

__attribute__((noinline)) static void moved_work(void) {
    for (unsigned long i = 0; i < 10000000; i++) sink += i;
}

__attribute__((noinline)) static void calls_moved_work(void) {
    moved_work();
    sink++;
}

// The mapping that has this code.
static int find_text(unsigned long *from, unsigned long *to) {
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long here = (unsigned long)find_text;
    char line[512], rights[8];
    int found = 0;
    while (maps && !found && fgets(line, sizeof line, maps))
        found = sscanf(line, "%lx-%lx %7s", from, to, rights) == 3 && *from <= here && here < *to;
    if (maps) fclose(maps);
    return found;
}

int main(void) {
    unsigned long from, to;
    if (!find_text(&from, &to)) return 1;
    unsigned long size = to - from;
    char *copy = mmap(0, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) return 1;
    memcpy(copy, (void *)from, size);
    if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) == MAP_FAILED) return 1;
    for (;;) calls_moved_work();
}
