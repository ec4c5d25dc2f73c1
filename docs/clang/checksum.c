/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "bpf.h"

SEC("tc")
int verify(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u16 *words = data + 14;
	__u32 sum = 0;

	if ((void *)(words + 10) > end)
		return -1;
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff ? -1 : 2;
}
