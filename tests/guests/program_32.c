// cc: -m32
#include <stdio.h>

int main(void)
{
    printf("%d-bit\n", (int)sizeof(void *) * 8);
    return 0;
}
