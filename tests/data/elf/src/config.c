/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Values of the kernel's configuration, of every type that they can have. */
#include "bpf.h"

#define __kconfig __attribute__((section(".kconfig")))

enum libbpf_tristate { TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 };

extern int LINUX_KERNEL_VERSION __kconfig;
extern unsigned long CONFIG_HZ __kconfig;
extern _Bool CONFIG_BPF_SYSCALL __kconfig;
extern enum libbpf_tristate CONFIG_IPV6 __kconfig __weak;
extern char CONFIG_DEFAULT_HOSTNAME[8] __kconfig __weak;
extern unsigned short CONFIG_NO_SUCH_THING __kconfig __weak;
extern char CONFIG_BPF_JIT __kconfig __weak;

SEC("tc")
int config(struct __sk_buff *skb)
{
	int out = skb->len;

	out += LINUX_KERNEL_VERSION + CONFIG_HZ * 3 + CONFIG_BPF_SYSCALL * 5 + CONFIG_IPV6 * 7;
	return out + CONFIG_DEFAULT_HOSTNAME[1] * 11 + CONFIG_NO_SUCH_THING * 13 + CONFIG_BPF_JIT * 17;
}
