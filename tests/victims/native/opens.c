// Opens the library named by its argument one second after the start, and works in it.
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **arguments) {
    sleep(1);
    void *library = dlopen(count > 1 ? arguments[1] : "", RTLD_NOW);
    if (!library) return 1;
    int (*run)(int) = (int (*)(int))dlsym(library, "plugin_run");
    volatile int sum = 0;
    for (;;) sum += run(10000);
}
