/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the kernel defines: functions and variables, some of which it may not have. */
#include "bpf.h"

struct bpf_cpumask;
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
extern int no_such_kfunc(int) __ksym __weak;
extern const int no_such_variable __ksym __weak;

SEC("tc")
int locked(struct __sk_buff *skb)
{
	int out = skb->len;

	bpf_rcu_read_lock();
	out *= 3;
	bpf_rcu_read_unlock();
	if (&no_such_variable)
		out += no_such_kfunc(out);
	return out;
}
