// cc: -m32 -static -nostdlib -fno-pie -no-pie -fno-stack-protector
/* A 32-bit program without a libc: exits with status 7. */
void _start(void)
{
	__asm__ volatile("int $0x80" : : "a"(1), "b"(7));
	__builtin_unreachable();
}
