/*
 * A leak of a known rate: RATE bytes a second by the clock, on any machine. It is built without frame pointers. The page
 * faults are its own: remember_request touches the memory.
 */
#include <stdlib.h>
#include <time.h>

#define CHUNK 65536
#define PAGE 4096

struct request {
	struct request *next;
	volatile char body[CHUNK];
};

static struct request *waiting;
static volatile unsigned long served;

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

__attribute__((noinline)) void remember_request(void)
{
	struct request *one = malloc(sizeof *one);
	if (!one)
		abort();
	one->next = waiting;
	waiting = one;
	for (unsigned at = 0; at < CHUNK; at += PAGE)
		one->body[at] = 1;
	one->body[CHUNK - 1] = 1;
	served++;
}

__attribute__((noinline)) void handle_request(void)
{
	remember_request();
	served++;
}

__attribute__((noinline)) void serve_until_killed(double rate)
{
	double began = now(), held = 0;
	for (;;) {
		struct timespec pause = { 0, 5000000 };
		for (double due = rate * (now() - began); held < due; held += sizeof(struct request))
			handle_request();
		nanosleep(&pause, 0);
		served++;
	}
}

int main(int count, char **arguments)
{
	serve_until_killed(count > 1 ? atof(arguments[1]) : 1 << 20);
	return served == 0;
}
