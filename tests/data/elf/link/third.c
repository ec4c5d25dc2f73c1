/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Calls a function that is written in Python, and has one that is called from there. */
#include "../src/bpf.h"

extern int twice(struct __sk_buff *skb, int x) __hidden;
__u64 calls;

__hidden int triple(__u32 x)
{
	calls++;
	return 3 * x;
}

SEC("tc")
int third(struct __sk_buff *skb)
{
	return twice(skb, 100 * skb->len) + 1;
}
