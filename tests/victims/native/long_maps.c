/* Maps one file as code thousands of times, under a path of some KiB, in many processes that each use a little CPU time.
 * usage: long_maps FOLDER PROCESSES MAPPINGS   (the processes end with their parent) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 4 || chdir(argv[1]))
        return 2;
    char name[256];
    memset(name, 'd', 255);
    name[255] = 0;
    for (int depth = 0; depth < 12; depth++)
        if ((mkdir(name, 0755), chdir(name)))
            return 2;
    int file = open("code", O_CREAT | O_RDWR | O_TRUNC, 0755);
    char page[4096] = {0};
    if (write(file, page, sizeof page) != sizeof page)
        return 1;
    for (int i = 0; i < atoi(argv[3]); i++)
        if (mmap(0, sizeof page, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED)
            break;
    for (int i = 0; i < atoi(argv[2]); i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) {
                for (volatile int spin = 0; spin < 20000000; spin++)
                    ;
                usleep(500000);
            }
        }
    while (wait(0) > 0)
        ;
    return 0;
}
