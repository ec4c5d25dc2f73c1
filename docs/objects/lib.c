/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* clang -O2 -g -target bpf -c lib.c -o lib.o && llvm-strip -g lib.o */
#define SEC(name) __attribute__((section(name), used))
#define __hidden __attribute__((visibility("hidden")))

struct __sk_buff;
typedef unsigned int u32;
typedef unsigned long long u64;

extern int twice(int x) __hidden;	/* written in Python */
u64 calls;

__hidden int mix(u32 a, u32 b)
{
	calls++;
	return (a ^ b) * 0x9e3779b1;
}

SEC("tc")
int from_c(struct __sk_buff *skb)
{
	return twice(21);
}

char _license[] SEC("license") = "Dual BSD/GPL";
