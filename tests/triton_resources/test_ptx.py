"""What is read from PTX; nothing is compiled."""

import pytest

from triton_resources.ptx import accesses

HEAD = """
	ld.param.b64 	%rd1, [f_param_0];
	ld.param.b64 	%rd2, [f_param_1];
	ld.param.b32 	%r9, [f_param_2];
"""

BODY = """
	mul.wide.s32 	%rd3, %r9, 2;
	add.s64 	%rd4, %rd1, %rd3;
	mov.b64 	%rd5, %rd4;
	@%p1 add.s64 	%rd6, %rd2, 64;
	@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd5 + 0 ];
	@%p1 ld.global.b16 { %rs1 }, [ %rd4 + 2 ];
	ld.global.L1::evict_last.v8.b32 { %r1 }, [ %rd6 + 0 ];
	cp.async.ca.shared.global [ %r44 + 0 ], [ %rd6 + 0 ], 0x4, %r53;
	st.shared.v4.b32 	[%r3], {%r1, %r2, %r3, %r4};
	@%p1 st.global.v2.b32 [ %rd6 + 0 ], { %r1, %r2 };
"""


def test_accesses() -> None:
    found = accesses(HEAD + BODY, ["x", "y", "n"])
    assert found.loads == {"x": [16, 2], "y": [32, 4]}
    assert found.stores == {"y": [8]}


def test_addresses_may_go_round_a_loop() -> None:
    ptx = HEAD + "\tadd.s64 %rd3, %rd1, 8;\n$L1:\n\tadd.s64 %rd3, %rd3, 8;\n\tld.global.b32 { %r1 }, [ %rd3 + 0 ];\n"
    assert accesses(ptx, ["x", "y", "n"]).loads == {"x": [4]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("\tadd.s64 %rd3, %rd1, %rd2;\n\tld.global.b32 { %r1 }, [ %rd3 + 0 ];\n", r"\['x', 'y'\], expected exactly"),
        ("\tld.global.b32 { %r1 }, [ %rd3 + 0 ];\n", "no argument"),
        ("\tld.global.b32 { %r1 }, [ %r3 + 0 ];\n", "cannot read"),
    ],
)
def test_what_cannot_be_told_is_an_error(lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accesses(HEAD + lines, ["x", "y", "n"])
