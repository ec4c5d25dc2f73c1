/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
 *
 * The source of the data files next to it: kinds_el.btf and kinds_el.btf.ext are sections of its object for a
 * little-endian machine, kinds_eb.* for a big-endian one, and kinds.txt is what bpftool reads in them.
 *
 *   for e in el eb; do
 *     clang -g -O2 -target bpf$e -fdebug-compilation-dir=. -c kinds.c -o kinds_$e.o
 *     llvm-objcopy --dump-section .BTF=kinds_$e.btf --dump-section .BTF.ext=kinds_$e.btf.ext kinds_$e.o /dev/null
 *   done
 *   bpftool btf dump file kinds_el.btf format raw > kinds.txt
 *
 * Made with clang 14, which gives enumerations neither a sign nor 64 bits.
 */
#define SEC(name) __attribute__((section(name), used))
#define tag(x) __attribute__((btf_decl_tag(x)))
#define type_tag(x) __attribute__((btf_type_tag(x)))

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

enum color { RED, GREEN = 7, BLUE = 0x80000000 };
enum sign { MINUS = -1, ZERO, PLUS };
enum wide { SMALL = 1, LARGE = 0x12345678 };
enum wide_signed { LEAST = -5 };

struct hidden;
union hidden_union;

struct flags {
	u32 low : 3;
	u32 high : 13;
	u32 whole;
};

struct node {
	struct node *next;
	const volatile char *text;
	int *restrict fast;
	u8 bytes[6];
	u32 grid[2][3];
	union {
		u64 both;
		struct {
			u32 first;
			u32 second;
		};
	};
	struct hidden *hidden;
	union hidden_union *hidden_union;
	enum color color;
	enum sign sign;
	enum wide wide;
	enum wide_signed wide_signed;
	_Bool ready;
	double ratio;
	int (*callback)(struct node *node, const char *name, ...);
	int type_tag("user") *user;
	__int128 big;
} tag("tagged");

struct node nodes[4] SEC(".data");
struct flags flags SEC(".bss");
extern int outside __attribute__((section(".ksyms")));
char licence[4] SEC("license") = "GPL";

static __attribute__((noinline)) int helper(struct node *node tag("argument"), u32 n)
{
	return node->callback ? n : outside;
}

SEC("tc") int entry(struct node *node)
{
	return helper(node, nodes[1].bytes[2]) + helper(&nodes[2], 1) + flags.whole;
}

struct elsewhere {
	int before;
	int wanted;
} __attribute__((preserve_access_index));

SEC("xdp") int relocated(struct elsewhere *elsewhere)
{
	return elsewhere->wanted;
}
