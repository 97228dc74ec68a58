/*
 * Causes page faults as fast as possible, and prints the cost of one: ns of user and system time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define PAGE 4096
#define PAGES 4096L

static double cpu(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int count, char **arguments)
{
	long wanted = count > 1 ? atol(arguments[1]) : 1000000, done = 0;
	double began = cpu();
	while (done < wanted) {
		volatile char *memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			return 1;
		for (long page = 0; page < PAGES; page++)
			memory[page * PAGE] = 1;
		munmap((void *)memory, PAGES * PAGE);
		done += PAGES;
	}
	printf("%.0f\n", (cpu() - began) * 1e9 / done);
	return 0;
}
