/* Maps every file of a folder as code, and uses a CPU.   usage: map_all FOLDER */
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

__attribute__((noinline)) static void work_beside_false_pythons(void)
{
    for (volatile unsigned long spin = 0;; spin++)
        ;
}

int main(int argc, char **argv)
{
    DIR *folder = argc > 1 ? opendir(argv[1]) : 0;
    struct dirent *entry;
    if (!folder || chdir(argv[1]))
        return 2;
    while ((entry = readdir(folder))) {
        int file = open(entry->d_name, O_RDONLY);
        if (file < 0)
            continue;
        mmap(0, 0x2000, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
        close(file);
    }
    work_beside_false_pythons();
}
