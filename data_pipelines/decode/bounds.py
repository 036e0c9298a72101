"""Upper limits of what is read of files that others wrote; larger ones are refused, not read."""

from __future__ import annotations

from data_pipelines.errors import DataError

RECORDS = frozenset({"json", "cls"})  # suffixes that decode to a record, not to a picture

# A record of 1,000 labels takes 50 kB.
MAX_RECORD_BYTES = 2**20
MAX_RECORD_DEPTH = 32  # objects and arrays inside each other
# A lossless picture of 4,096 x 4,096 pixels takes 50 MB, a JPEG of 64 million pixels 40 MB.
MAX_MEMBER_BYTES = 128 * 2**20
MAX_SAMPLE_BYTES = 512 * 2**20  # of the members that are read together
MAX_SAMPLE_MEMBERS = 4096  # 1,000 labels take up to 1,001 members
MAX_NAME_BYTES = 4096  # of a member, key and suffix together; PATH_MAX of Linux
MAX_TAR_RECORD_BYTES = 2**20  # of a pax header or a GNU long name, which precede a member


def check_member_size(member: str, size: int) -> None:
    """Check the encoded size of a member before it is read or decoded.

    Args:
        member: Its name, which ends with its suffix.
        size: Its size in bytes.

    Raises:
        DataError: It is larger than a member of its suffix may be.
    """
    is_record = member.rpartition(".")[2] in RECORDS
    allowed = MAX_RECORD_BYTES if is_record else MAX_MEMBER_BYTES
    if size > allowed:
        raise DataError(f"{member}: {size} bytes, allowed are at most {allowed}")


def check_sample_size(size: int) -> None:
    """Check the encoded size of the members of a sample that are read.

    Raises:
        DataError: They are larger than `MAX_SAMPLE_BYTES`.
    """
    if size > MAX_SAMPLE_BYTES:
        raise DataError(
            f"the members that the tasks need have {size} bytes, allowed are at most "
            f"{MAX_SAMPLE_BYTES}"
        )
