"""Arrow columns to Confluent-framed Avro and back: the wire contract of the topic.

pyruhvro encodes and decodes whole columns (millions of rows a second);
fastavro, record by record, is the reference and decides what the fast path
cannot. The fast path ignores bytes after a record, so every record it decoded
is encoded again and must give the same bytes; what does not is doubtful and
goes to fastavro, which finds the record's true end.

Wire format (Confluent): byte 0x00, schema id as 4 bytes big endian, Avro body.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any, cast

import fastavro
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from rayapp.errors import RayappError

MAGIC = 0
HEADER_BYTES = 5


class UndecodableRecord(RayappError):
    """One record's bytes are not Avro of the schema they claim."""


def frame_header(schema_id: int) -> bytes:
    """Return the 5 bytes before every body."""
    return struct.pack(">bI", MAGIC, schema_id)


def schema_id_of(value: bytes | None) -> int | None:
    """Return the schema id a record claims, or None when it is not framed."""
    if value is None or len(value) < HEADER_BYTES or value[0] != MAGIC:
        return None
    return int.from_bytes(value[1:HEADER_BYTES], "big")


class Codec:
    """Encode and decode the records of one schema.

    Args:
        schema: Avro schema as JSON text; the writer's and the reader's alike.
    """

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._parsed = fastavro.parse_schema(json.loads(schema))

    def encode(self, batch: pa.RecordBatch, schema_id: int) -> list[bytes]:
        """Return one framed record a row."""
        bodies = self._encode_bodies(batch)
        header = pa.scalar(frame_header(schema_id), pa.binary())
        return cast("list[bytes]", pc.binary_join_element_wise(header, bodies, pa.scalar(b"", pa.binary())).to_pylist())

    def decode(self, bodies: list[bytes]) -> pa.RecordBatch | None:
        """Return one row a body, or None when any body is doubtful.

        Args:
            bodies: Avro bodies without the 5 header bytes.
        """
        try:
            batch = pyruhvro.deserialize_array(bodies, self.schema)
            batch.validate(full=True)  # it passes on text that is not UTF-8
            if not self._encode_bodies(batch).equals(pa.array(bodies, pa.binary())):
                return None
        except ValueError:
            return None
        except BaseException as error:
            # The Rust library panics on some inputs; the panic's class is not importable.
            if type(error).__name__ != "PanicException":
                raise
            return None
        return cast("pa.RecordBatch", batch)

    def decode_one(self, body: bytes) -> pa.RecordBatch:
        """Decode one doubtful body by the reference library, then as a column.

        Raises:
            UndecodableRecord: not Avro of this schema, or bytes left over after it.
        """
        stream = io.BytesIO(body)
        try:
            record = fastavro.schemaless_reader(stream, self._parsed, None)
        except Exception as error:
            raise UndecodableRecord("undecodable") from error
        if stream.read(1):
            raise UndecodableRecord("trailing_bytes")
        return self.from_records([cast("dict[str, Any]", record)])

    def decode_foreign(self, body: bytes, writer_schema: str) -> pa.RecordBatch:
        """Decode one body written under another schema, mapped to ours by name.

        Raises:
            UndecodableRecord: not Avro of that schema, or it lacks what ours needs.
        """
        stream = io.BytesIO(body)
        try:
            record = fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(writer_schema)), self._parsed)
        except Exception as error:
            raise UndecodableRecord("undecodable_foreign") from error
        if stream.read(1):
            raise UndecodableRecord("trailing_bytes")
        return self.from_records([cast("dict[str, Any]", record)])

    def from_records(self, records: Sequence[dict[str, Any]]) -> pa.RecordBatch:
        """Return records decoded elsewhere in this schema's columns.

        Raises:
            UndecodableRecord: a record does not fit the schema.
        """
        bodies = []
        for record in records:
            out = io.BytesIO()
            try:
                fastavro.schemaless_writer(out, self._parsed, record)
            except Exception as error:
                raise UndecodableRecord("does_not_fit_schema") from error
            bodies.append(out.getvalue())
        try:
            return cast("pa.RecordBatch", pyruhvro.deserialize_array(bodies, self.schema))
        except ValueError as error:
            raise UndecodableRecord("undecodable") from error

    def _encode_bodies(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the Avro bodies of a batch as one binary array."""
        if batch.num_rows == 0:
            return pa.array([], pa.binary())
        return pa.concat_arrays(pyruhvro.serialize_record_batch(batch, self.schema, 1))
