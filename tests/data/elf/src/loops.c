/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Bounded loops over a packet: a checksum, and a search with an early way out. */
#include "bpf.h"

SEC("tc")
int checksum(struct __sk_buff *skb)
{
	unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 sum = 0;

	for (int i = 0; i < 64; i += 2) {
		if (data + i + 2 > end)
			break;
		sum += data[i] << 8 | data[i + 1];
	}
	sum = (sum & 0xffff) + (sum >> 16);
	return sum & 0x7fff;
}

SEC("tc")
int first_zero(struct __sk_buff *skb)
{
	__u64 steps = 0;

	for (__u32 i = 0; i < 100; i++) {
		__u8 byte;

		if (bpf_skb_load_bytes(skb, i, &byte, 1))
			return -1;
		steps += byte;
		if (!byte)
			return i;
	}
	return steps;
}
