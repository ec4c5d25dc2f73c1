/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Static, global and hidden functions, which call one another, shared by two programs. */
#include "bpf.h"

static __noinline __u32 rotate(__u32 value, __u32 by)
{
	return value << (by & 31) | value >> (-by & 31);
}

static __noinline __u32 mix(__u32 a, __u32 b)
{
	a = rotate(a ^ b, 7) * 0x9e3779b1;
	return rotate(a, 13) + b;
}

__noinline int weight(__u32 length)
{
	return length > 100 ? 3 : length > 10 ? 2 : 1;
}

__hidden __noinline int hidden_sum(struct __sk_buff *skb)
{
	return mix(skb->len, skb->protocol) & 0xfff;
}

SEC("tc")
int hash(struct __sk_buff *skb)
{
	__u32 h = 0x811c9dc5;

	h = mix(h, skb->len);
	h = mix(h, weight(skb->len));
	return h & 0x7fffffff;
}

SEC("tc")
int both(struct __sk_buff *skb)
{
	return hidden_sum(skb) * 10 + weight(skb->len) + (rotate(skb->len, 3) & 7);
}
