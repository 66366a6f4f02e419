"""What the standard library lacks for tidying up: deletes a Kafka topic and drops a Cassandra keyspace."""

import socket
import struct


def delete_topic(address, topic):
    """DeleteTopics v1. Works where one broker is all there is, or happens to be the controller."""
    text = topic.encode()
    request = struct.pack(">hhih", 20, 1, 1, -1) + struct.pack(">ih", 1, len(text)) + text + struct.pack(">i", 30_000)
    with _connect(address) as line:
        line.sendall(struct.pack(">i", len(request)) + request)
        answer = _read(line, struct.unpack(">i", _read(line, 4))[0])
    error = struct.unpack(">h", answer[-2:])[0]
    if error:
        raise OSError(f"Kafka refused to delete topic {topic}: error {error}")


def drop_keyspace(address, keyspace):
    """Native protocol v4, without authentication."""
    version = struct.pack(">H", 1) + _text("CQL_VERSION") + _text("3.0.0")
    query = f"DROP KEYSPACE IF EXISTS {keyspace}".encode()
    with _connect(address) as line:
        for opcode, body in [(1, version), (7, struct.pack(">i", len(query)) + query + struct.pack(">HB", 1, 0))]:
            line.sendall(struct.pack(">BBhBi", 4, 0, 0, opcode, len(body)) + body)
            head = _read(line, 9)
            answer = _read(line, struct.unpack(">i", head[5:])[0])
            if head[4] == 0:
                raise OSError(f"Cassandra refused to drop keyspace {keyspace}: {answer!r}")


def _connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


def _text(text):
    return struct.pack(">H", len(text)) + text.encode()


def _read(line, size):
    data = b""
    while len(data) < size:
        more = line.recv(size - len(data))
        if not more:
            raise OSError("the connection was closed")
        data += more
    return data
