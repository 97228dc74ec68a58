/*
 * Opens, uses and closes the libraries named by its arguments, in turn. The thread has the number of the library that it is
 * in as its name. Libraries of one size come to the same address.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>

int main(int count, char **arguments)
{
	void *before = 0;
	for (int turn = 0;; turn = (turn + 1) % (count - 1)) {
		char name[16];
		snprintf(name, sizeof name, "plugin-%d", turn);
		void *library = dlopen(arguments[1 + turn], RTLD_NOW);
		if (!library)
			return 1;
		int (*run)(int) = (int (*)(int))dlsym(library, "plugin_run");
		if (before && before != (void *)run)
			return 2;
		before = (void *)run;
		struct timespec now, begin;
		prctl(PR_SET_NAME, name);
		clock_gettime(CLOCK_MONOTONIC, &begin);
		do {
			run(100000);
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 150);
		prctl(PR_SET_NAME, "between");
		dlclose(library);
	}
}
