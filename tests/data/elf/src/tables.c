/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* A dense switch, of which clang makes a table of constants, and one of calls, of which it makes jumps. */
#include "bpf.h"

static __noinline int table(__u32 value)
{
	switch (value) {
	case 0: return 5;
	case 1: return 1007;
	case 2: return 13;
	case 3: return -4;
	case 4: return 99;
	case 5: return 100000;
	case 6: return 23;
	case 7: return 8;
	case 8: return 71;
	}
	return -1;
}

SEC("tc")
int classify(struct __sk_buff *skb)
{
	__u32 out;

	switch (skb->protocol) {
	case 0x0008: out = skb->len; break;
	case 0x0608: out = skb->len * 2; break;
	case 0xdd86: out = skb->len + 40; break;
	case 0x0081: out = skb->len - 4; break;
	case 0xa888: out = skb->len - 8; break;
	default: out = skb->protocol;
	}
	return table(skb->len % 10) + out;
}
