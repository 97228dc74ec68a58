/* One function that uses a CPU, by the name that the compiler is given: two programs of the same size and build id. */
__attribute__((noinline)) void NAME(void)
{
    for (;;)
        __asm__ volatile("");
}

int main(void)
{
    NAME();
}
