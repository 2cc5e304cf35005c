#!/usr/bin/env python3
"""CTranslate2 as it is put behind HTTP where no server comes with it: asyncio in front, requests gathered into batches.

    PEERS_PYTHON=... python3 benches/peers/serve_ctranslate2.py --threads 1 [--model DIR] [--most 32] [--gather 0.005]

Answers as much of POST /v1/translate as serve.py asks for. A batch begins when the translator is free: with what has come by then, at
most so many sentences; if nothing waited, what comes within --gather seconds joins the first. There is no queue's limit: whoever comes
waits. The packages that are needed are installed as for presets.py. Prints its address, as `beamfuse serve` does.
"""
import argparse, asyncio, json, pathlib, sys

import environment
from environment import HOME, ROOT


class Batcher:
    """Translates what waits, a batch at a time, on one thread."""

    def __init__(self, arguments):
        import ctranslate2, sentencepiece
        from ctranslate2.converters import TransformersConverter
        from peer_ctranslate2 import in_f32
        directory = HOME / ('ct2-f32-' + arguments.model.name)
        if not directory.exists():
            TransformersConverter(str(in_f32(arguments.model))).convert(str(directory))
        self.engine = ctranslate2.Translator(str(directory), compute_type=arguments.dtype, inter_threads=1, intra_threads=arguments.threads)
        self.source, self.target = (sentencepiece.SentencePieceProcessor(str(arguments.model / f'{side}.spm')) for side in ('source', 'target'))
        self.most, self.gather, self.queue = arguments.most, arguments.gather, asyncio.Queue()

    def translate(self, texts):
        pieces = [self.source.encode(text, out_type=str) + ['</s>'] for text in texts]
        return [self.target.decode(result.hypotheses[0]) for result in self.engine.translate_batch(pieces, beam_size=4, max_batch_size=self.most)]

    async def run(self):
        while True:
            waiting = [await self.queue.get()]
            if self.queue.empty():
                await asyncio.sleep(self.gather)
            while len(waiting) < self.most and not self.queue.empty():
                waiting.append(self.queue.get_nowait())
            texts = await asyncio.get_running_loop().run_in_executor(None, self.translate, [text for text, _ in waiting])
            for (_, future), text in zip(waiting, texts):
                if not future.done():
                    future.set_result(text)

    async def answer(self, reader, writer):
        try:
            head = (await reader.readuntil(b'\r\n\r\n')).lower()
            length = int(head.partition(b'content-length:')[2].split(b'\r\n')[0])
            items = json.loads(await reader.readexactly(length))['items']
            futures = [asyncio.get_running_loop().create_future() for _ in items]
            for item, future in zip(items, futures):
                self.queue.put_nowait((item['source'], future))
            body = json.dumps(dict(items=[dict(text=text) for text in await asyncio.gather(*futures)])).encode()
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n' % len(body) + body)
            await writer.drain()
        except (OSError, EOFError, ValueError):
            # Whoever has gone, or sent something else, gets no answer.
            pass
        finally:
            writer.close()


async def serve(arguments):
    batcher = Batcher(arguments)
    server = await asyncio.start_server(batcher.answer, '127.0.0.1', 0, backlog=4096)
    print(f'listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}', flush=True)
    await batcher.run()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, default=ROOT / 'models' / 'm30k-en-de')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--most', type=int, default=32)
    parser.add_argument('--gather', type=float, default=0.005)
    environment.enter()
    asyncio.run(serve(parser.parse_args()))


if __name__ == '__main__':
    sys.exit(main())
