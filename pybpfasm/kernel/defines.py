# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Constants that the kernel's headers define as macros, which BTF therefore does not hold.

Written by hand, each group under the header (below include/uapi) that it is from. EtherTypes, protocols and
address families are in `pybpfasm.net`.
"""

# linux/bpf.h: flags of BPF_PROG_ATTACH, BPF_PROG_DETACH and BPF_LINK_CREATE
BPF_F_ALLOW_OVERRIDE = 1
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4
BPF_F_BEFORE = 8
BPF_F_AFTER = 16
BPF_F_ID = 32
BPF_F_PREORDER = 64

# linux/bpf.h: flags of BPF_PROG_QUERY
BPF_F_QUERY_EFFECTIVE = 1

# linux/bpf.h: flags of BPF_PROG_LOAD
BPF_F_STRICT_ALIGNMENT = 1
BPF_F_ANY_ALIGNMENT = 2
BPF_F_TEST_RND_HI32 = 4
BPF_F_TEST_STATE_FREQ = 8
BPF_F_SLEEPABLE = 16
BPF_F_XDP_HAS_FRAGS = 32
BPF_F_XDP_DEV_BOUND_ONLY = 64
BPF_F_TEST_REG_INVARIANTS = 128

# linux/bpf.h: flags of BPF_PROG_TEST_RUN
BPF_F_TEST_RUN_ON_CPU = 1
BPF_F_TEST_XDP_LIVE_FRAMES = 2
BPF_F_TEST_SKB_CHECKSUM_COMPLETE = 4

# linux/bpf.h: the source register of ld_imm64 and of call, saying what the immediate is
BPF_PSEUDO_MAP_FD = 1
BPF_PSEUDO_MAP_VALUE = 2
BPF_PSEUDO_BTF_ID = 3
BPF_PSEUDO_FUNC = 4
BPF_PSEUDO_MAP_IDX = 5
BPF_PSEUDO_MAP_IDX_VALUE = 6
BPF_PSEUDO_CALL = 1
BPF_PSEUDO_KFUNC_CALL = 2

# linux/bpf.h: sizes in bytes
BPF_OBJ_NAME_LEN = 16  # with the terminating zero
BPF_TAG_SIZE = 8
BPF_BUILD_ID_SIZE = 20

# linux/bpf.h: combinations of enumerators
BPF_F_REDIRECT_FLAGS = 25  # BPF_F_INGRESS | BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS

# linux/if_link.h: flags of an XDP program's link; without, the driver runs it where it can
XDP_FLAGS_UPDATE_IF_NOEXIST = 1
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
XDP_FLAGS_HW_MODE = 8
XDP_FLAGS_REPLACE = 16

# linux/pkt_cls.h: verdicts of cls_bpf programs
TC_ACT_UNSPEC = -1
TC_ACT_OK = 0
TC_ACT_RECLASSIFY = 1
TC_ACT_SHOT = 2
TC_ACT_PIPE = 3
TC_ACT_STOLEN = 4
TC_ACT_QUEUED = 5
TC_ACT_REPEAT = 6
TC_ACT_REDIRECT = 7
TC_ACT_TRAP = 8

# linux/pkt_sched.h
TC_H_CLSACT = 0xFFFFFFF1
TC_H_MIN_INGRESS = 0xFFF2
TC_H_MIN_EGRESS = 0xFFF3

# linux/if_packet.h: __sk_buff.pkt_type
PACKET_HOST = 0
PACKET_BROADCAST = 1
PACKET_MULTICAST = 2
PACKET_OTHERHOST = 3
PACKET_OUTGOING = 4
PACKET_LOOPBACK = 5

# linux/net.h: bpf_sock.type (MIPS has 1 and 2 the other way round)
SOCK_STREAM = 1
SOCK_DGRAM = 2
SOCK_RAW = 3

# linux/in.h, and the kernel's own include/linux/socket.h: bpf_sockopt.level
SOL_IP = 0
SOL_TCP = 6
SOL_UDP = 17
SOL_IPV6 = 41

SOL_SOCKET = 1  # asm-generic/socket.h, and the options of that level
SO_REUSEADDR = 2
SO_SNDBUF = 7
SO_RCVBUF = 8
SO_KEEPALIVE = 9
SO_PRIORITY = 12
SO_REUSEPORT = 15
SO_RCVLOWAT = 18
SO_BINDTODEVICE = 25
SO_MARK = 36
SO_MAX_PACING_RATE = 47
SO_BINDTOIFINDEX = 62
SO_TXREHASH = 74

# linux/tcp.h: options of SOL_TCP
TCP_NODELAY = 1
TCP_MAXSEG = 2
TCP_KEEPIDLE = 4
TCP_KEEPINTVL = 5
TCP_KEEPCNT = 6
TCP_SYNCNT = 7
TCP_WINDOW_CLAMP = 10
TCP_CONGESTION = 13
TCP_THIN_LINEAR_TIMEOUTS = 16
TCP_USER_TIMEOUT = 18
TCP_NOTSENT_LOWAT = 25
TCP_SAVE_SYN = 27

# linux/in.h, linux/in6.h: options of SOL_IP and SOL_IPV6
IP_TOS = 1
IPV6_TCLASS = 67
IPV6_AUTOFLOWLABEL = 70

# linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h: options that ask for the destination before NAT
SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80
