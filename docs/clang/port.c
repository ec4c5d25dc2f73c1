/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "bpf.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

SEC("tc")
int drop_port(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end)
		return -1;
	if (eth->h_proto != __builtin_bswap16(ETH_P_IP) || ip->ihl != 5 || ip->protocol != 6)
		return -1;
	if (tcp->dest == __builtin_bswap16(8000) && tcp->syn && !tcp->ack)
		return 2;
	return -1;
}
