/* A program of 32 bits without any library: gcc -m32 -nostdlib -static. */
volatile unsigned sink;

__attribute__((noinline)) void compute(void)
{
	for (unsigned i = 0; i < 1000000; i++)
		sink += i;
}

void _start(void)
{
	for (;;)
		compute();
}
