/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Programs that are loaded when asked for, or not at all. */
#include "../src/bpf.h"

SEC("?tc")
int optional(struct __sk_buff *skb)
{
	return 1;
}

SEC("tc")
int always(struct __sk_buff *skb)
{
	return 2;
}

SEC("?fentry/tcp_connect")
int traced(void *ctx)
{
	return 0;
}

SEC("?struct_ops/ssthresh")
int operation(void *ctx)
{
	return 0;
}
