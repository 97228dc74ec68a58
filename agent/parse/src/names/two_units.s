# Two units of debug information. The function of the first one has its name in the second one (DW_FORM_ref_addr), as a
# linker that optimizes leaves it.

        .text
        .globl _start
_start: nop
        nop
.Lstart_end:
        # An address that nothing asks for.
second: nop
        nop
.Lsecond_end:

        .section .debug_abbrev, "", @progbits
.Labbrev:
        .uleb128 1, 0x11                # DW_TAG_compile_unit
        .byte 1                         # has children
        .uleb128 0x11, 0x01             # DW_AT_low_pc, DW_FORM_addr
        .uleb128 0x12, 0x07             # DW_AT_high_pc, DW_FORM_data8
        .byte 0, 0
        .uleb128 2, 0x2e                # DW_TAG_subprogram
        .byte 0
        .uleb128 0x31, 0x10             # DW_AT_abstract_origin, DW_FORM_ref_addr
        .uleb128 0x11, 0x01
        .uleb128 0x12, 0x07
        .byte 0, 0
        .uleb128 3, 0x2e
        .byte 0
        .uleb128 0x03, 0x08             # DW_AT_name, DW_FORM_string
        .byte 0, 0
        .byte 0

        .section .debug_info, "", @progbits
.Linfo:
.Lfirst:
        .long .Lfirst_end - .Lfirst - 4
        .short 4
        .long .Labbrev
        .byte 8
        .uleb128 1
        .quad _start
        .quad .Lstart_end - _start
        .uleb128 2
        .long .Lname
        .quad _start
        .quad .Lstart_end - _start
        .byte 0
.Lfirst_end:
.Lsecond_unit:
        .long .Lsecond_unit_end - .Lsecond_unit - 4
        .short 4
        .long .Labbrev
        .byte 8
        .uleb128 1
        .quad second
        .quad .Lsecond_end - second
.Lname: .uleb128 3
        .asciz "from_the_other_unit"
        .byte 0
.Lsecond_unit_end:

        .section .debug_aranges, "", @progbits
        .long 44
        .short 2
        .long .Lfirst
        .byte 8, 0
        .long 0
        .quad _start, .Lstart_end - _start, 0, 0
        .long 44
        .short 2
        .long .Lsecond_unit
        .byte 8, 0
        .long 0
        .quad second, .Lsecond_end - second, 0, 0
