/* Code made at run time, and a perf map of so many MiB that grows by one line a millisecond.
 * usage: perf_map MIB   (run as a process that is killed at the end; the map lies in /tmp) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int map;

static void *grow(void *unused)
{
    while (write(map, "1 1 x\n", 6) == 6)
        usleep(1000);
    return unused;
}

int main(int argc, char **argv)
{
    size_t wanted = (size_t)atoi(argc > 1 ? argv[1] : "16") << 20;
    char path[64], block[6 << 10];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    map = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_APPEND, 0644);
    for (size_t at = 0; at < sizeof block; at += 6)
        memcpy(block + at, "0 1 a\n", 6);
    for (size_t written = 0; written < wanted; written += sizeof block)
        if (write(map, block, sizeof block) != sizeof block)
            return 1;
    size_t len = 4 << 20;
    unsigned char *code = mmap(0, len, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        return 1;
    memset(code, 0x90, len);
    int back = -(int)len;
    code[len - 5] = 0xe9;
    memcpy(code + len - 4, &back, 4);
    char last[64];
    snprintf(last, sizeof last, "%lx %zx made_at_run_time\n", (unsigned long)code, len);
    if (write(map, last, strlen(last)) < 0)
        return 1;
    pthread_t thread;
    pthread_create(&thread, 0, grow, 0);
    ((void (*)(void))code)();
}
