/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Static data of every sort: constants, strings, variables with and without a value to start from. */
#include "bpf.h"

struct limits {
	__u32 low;
	__u32 high;
	char name[8];
};

const volatile struct limits limits = {10, 1000, "default"};
const volatile __u64 factor = 3;
static const __u16 primes[] = {2, 3, 5, 7, 11, 13, 17, 19};
__u64 runs;
static volatile __u32 last_length;
__u32 started = 41;
static volatile __s64 balance = -5;
__u8 separate SEC(".data.separate") = 9;

SEC("tc")
int count(struct __sk_buff *skb)
{
	const char *text = "a string that is no variable";
	__u32 length = skb->len;

	__sync_fetch_and_add(&runs, 1);
	started++;
	balance += length;
	last_length = length;
	separate += 1;
	if (length < limits.low || length > limits.high)
		return text[length & 7];
	return runs * factor + primes[length & 7] + started + balance + separate + limits.name[0];
}
