/*
 * Works in a function of its own for some seconds and becomes another program, in the same process, as entrypoint scripts do.
 *
 * becomes SECONDS [PROGRAM ARGUMENT...]. Without a program it works without end. Compiled with -DSECOND, its functions have
 * other names. WORK is what they do: compute, or (with -DFAULTS) touch new pages.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef SECOND
#define WORK second_work
#define CALLER second_caller
#else
#define WORK first_work
#define CALLER first_caller
#endif

volatile unsigned long sink;

__attribute__((noinline)) void WORK(void)
{
#ifdef FAULTS
	size_t size = 64 << 12;
	volatile char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t at = 0; at < size; at += 1 << 12)
		memory[at] = 1;
	munmap((void *)memory, size);
#else
	for (unsigned long i = 0; i < 1000000; i++)
		sink += i;
#endif
}

__attribute__((noinline)) void CALLER(void)
{
	WORK();
	sink++;
}

int main(int count, char **arguments)
{
	time_t end = time(0) + (count > 1 ? atoi(arguments[1]) : 1);
	while (count < 3 || time(0) < end)
		CALLER();
	execv(arguments[2], arguments + 2);
	return 1;
}
