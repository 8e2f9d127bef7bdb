"""What differs between the SQL of the engines that summarise parts. Pure."""

from dataclasses import dataclass
from typing import Final

__all__ = ["DUCKDB", "SPARK", "Dialect"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an engine writes what the others write differently; `{}` stands for what is put in.

    Attributes:
        quote: The quotation mark of names.
        source: What rows of the parts are selected from; the column `$part` has the part's name.
        time: A time, of microseconds since 1970.
        bin: The number of a row's bin, of the quoted column of its time and the bin's width in microseconds.
        hash: A number of 32 bits made of a text: of eight digits of its MD5, which begin at a place.
    """

    quote: str
    source: str
    time: str
    bin: str
    hash: str

    def quoted(self, name: str) -> str:
        """Return a name as SQL."""
        return self.quote + name.replace(self.quote, self.quote * 2) + self.quote

    @property
    def drawn(self) -> str:
        """Whether a row is the one of its request that counts: the first 32 bits of the MD5 of its id draw one."""
        rows, row = self.quoted("$rows"), self.quoted("$row")
        # Some engines compute both sides of OR.
        return f"({rows} <= 1 OR {row} = {self.hash.format(self.quoted('$request_id'), 1)} % nullif({rows}, 0))"

    @property
    def id_hash(self) -> str:
        """A number of 32 bits made of the column `id`, other than the one that draws the row."""
        return self.hash.format("id", 9)


DUCKDB: Final = Dialect(
    quote='"',
    source="read_parquet(?, filename = '$part', hive_partitioning = false)",
    time="make_timestamptz({})",
    bin="epoch_us({}) // {}",
    hash="('0x' || substr(md5({}), {}, 8))::UINTEGER",
)
SPARK: Final = Dialect(
    quote="`",
    source="parts",
    time="timestamp_micros({})",
    bin="unix_micros({}) div {}",
    hash="CAST(conv(substr(md5({}), {}, 8), 16, 10) AS BIGINT)",
)
