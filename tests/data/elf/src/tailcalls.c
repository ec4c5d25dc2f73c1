/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Tail calls through an array of programs that is filled from the start. */
#include "bpf.h"

int small(struct __sk_buff *skb);
int large(struct __sk_buff *skb);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, int(struct __sk_buff *));
} jumps SEC(".maps") = {.values = {[1] = (void *)&small, [3] = (void *)&large}};

SEC("tc")
int dispatch(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &jumps, skb->len < 100 ? 1 : skb->len < 200 ? 2 : 3);
	return 7;
}

SEC("tc")
int small(struct __sk_buff *skb)
{
	return 1000 + skb->len;
}

SEC("tc")
int large(struct __sk_buff *skb)
{
	return 2000 + skb->len;
}
