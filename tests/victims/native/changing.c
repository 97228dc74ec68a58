/* Runs code out of a copy of its own file, which it damages at random places all the time, but for the page that it runs.
 * usage: changing FILE   (x86-64) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int copy;
static off_t size, page_at;

/* Code of one page that needs nothing outside of it. */
__attribute__((noinline, aligned(4096))) static void work_in_a_changing_file(volatile unsigned long rounds)
{
    while (rounds--)
        ;
}

__attribute__((noinline, aligned(4096))) static void *damage(void *unused)
{
    unsigned seed = getpid();
    for (;;) {
        unsigned char bytes[64];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = rand_r(&seed);
        off_t at = rand_r(&seed) % size;
        if (at + (off_t)sizeof bytes <= page_at || at >= page_at + 4096)
            if (pwrite(copy, bytes, sizeof bytes, at) < 0)
                return unused;
        /* Its size changes, too, and its head is whole again at times. */
        if (rand_r(&seed) % 64 == 0 && ftruncate(copy, size + rand_r(&seed) % (64 << 20)))
            return unused;
        if (rand_r(&seed) % 16 == 0) {
            static char head[4096];
            int own = open("/proc/self/exe", O_RDONLY);
            if (page_at >= 4096 && read(own, head, sizeof head) == sizeof head && pwrite(copy, head, sizeof head, 0) < 0)
                return unused;
            close(own);
        }
        usleep(50);
    }
}

int main(int argc, char **argv)
{
    char line[512];
    unsigned long code = (unsigned long)work_in_a_changing_file;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end, offset;
        if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 && start <= code && code < end)
            page_at = code - start + offset;
    }
    struct stat own;
    int file = open("/proc/self/exe", O_RDONLY);
    copy = argc > 1 ? open(argv[1], O_CREAT | O_RDWR | O_TRUNC, 0755) : -1;
    if (copy < 0 || !page_at || fstat(file, &own))
        return 2;
    size = own.st_size;
    void *bytes = mmap(0, size, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED || write(copy, bytes, size) != size)
        return 1;
    void *page = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, copy, page_at);
    pthread_t thread;
    if (page == MAP_FAILED || pthread_create(&thread, 0, damage, 0))
        return 1;
    for (;;)
        ((void (*)(unsigned long))page)(100000000);
}
