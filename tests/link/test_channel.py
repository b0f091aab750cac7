"""Both ends of the channel over a real socket."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from headrace.link.channel import EngineChannel, TransportChannel
from headrace.link.messages import Abort, EngineStats, RequestOutput, StepOutput, Submit
from headrace.link.sampling import SamplingParams


async def until(condition, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def connected(transport: TransportChannel, received: list) -> EngineChannel:
    """An engine's end that has been heard of: before that, messages to it are dropped."""
    transport.attach(asyncio.get_running_loop())
    engine = EngineChannel(transport.address)
    engine.send(StepOutput([]))
    await until(lambda: received)
    received.clear()
    return engine


async def test_messages_arrive_whole_and_in_order_both_ways() -> None:
    received = []
    transport = TransportChannel(received.append)
    engine = await connected(transport, received)
    submits = [
        Submit(request_id=i, token_ids=[i, 2**31 - 1], sampling=SamplingParams(seed=2**64 - 1))
        for i in range(500)
    ]
    for submit in submits:
        transport.send(submit)
    transport.send(Abort([1, 2]))
    arrived = []
    while len(arrived) < 501:
        arrived += engine.receive(5.0)
    assert arrived == [*submits, Abort([1, 2])]
    outputs = [StepOutput([RequestOutput(i, [i], [-0.5])]) for i in range(500)]
    for output in outputs:
        engine.send(output)
    await until(lambda: len(received) == 500)
    assert received == outputs
    engine.close()
    transport.close()


async def test_messages_sent_while_the_other_side_sends_are_not_forgotten() -> None:
    """A send may swallow the edge that announces a message: nothing may wait for the next one."""
    received = []
    transport = TransportChannel(received.append)
    engine = await connected(transport, received)
    for i in range(300):
        engine.send(StepOutput([RequestOutput(i, [i])]))
        transport.send(Abort([i]))
        await asyncio.sleep(0)
    await until(lambda: len(received) == 300)
    engine.close()
    transport.close()


async def test_garbage_is_reported_and_what_follows_still_arrives() -> None:
    received, garbage = [], []
    transport = TransportChannel(received.append, garbage.append)
    transport.attach(asyncio.get_running_loop())
    engine = EngineChannel(transport.address)
    engine._socket.send(b"\xc1 not msgpack")
    engine.send(StepOutput([]))
    await until(lambda: received)
    assert received == [StepOutput([])]
    assert len(garbage) == 1
    engine.close()
    transport.close()


async def test_the_socket_is_private_and_goes_with_the_channel() -> None:
    transport = TransportChannel(lambda _: None)
    directory = Path(transport.address.removeprefix("ipc://")).parent
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    transport.close()
    assert not directory.exists()


def test_stats_are_one_message_of_plain_numbers() -> None:
    assert all(
        annotation in {"int", "float"} for annotation in EngineStats.__annotations__.values()
    )
