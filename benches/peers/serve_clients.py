#!/usr/bin/env python3
"""Points the public clients of LibreTranslate and DeepL at a running service.

    pip install libretranslatepy==2.1.4 deepl==1.32.0
    beamfuse serve &
    python3 benches/peers/serve_clients.py http://127.0.0.1:5000 [KEY]
"""
import sys
import urllib.error

import deepl
from libretranslatepy import LibreTranslateAPI

SENTENCE, EXPECTED = 'A dog runs.', 'Ein Hund rennt.'


def libretranslate(url, key):
    client = LibreTranslateAPI(url, api_key=key)
    assert client.translate(SENTENCE, 'en', 'de') == EXPECTED
    assert client.translate(SENTENCE, 'auto', 'de') == EXPECTED
    assert client.detect(SENTENCE) == [dict(confidence=100, language='en')]
    assert client.languages() == [dict(code='en', name='English', targets=['de'])]
    try:
        client.translate(SENTENCE, 'en', 'fr')
        raise AssertionError('a pair that is not served was translated')
    except urllib.error.HTTPError as error:
        assert error.code == 400


def deepl_client(url, key):
    client = deepl.Translator(key or 'no key is needed', server_url=url)
    assert client.translate_text(SENTENCE, target_lang='DE').text == EXPECTED
    results = client.translate_text([SENTENCE, 'Two\nlines.'], source_lang='EN', target_lang='DE')
    assert results[0].text == EXPECTED and results[0].detected_source_lang == 'EN'
    assert results[1].text.count('\n') == 1
    assert [language.code for language in client.get_source_languages()] == ['EN']
    assert [language.code for language in client.get_target_languages()] == ['DE']
    assert client.get_usage().character.limit > 0
    try:
        client.translate_text(SENTENCE, target_lang='DE', formality='more')
        raise AssertionError('a formality was promised')
    except deepl.exceptions.DeepLException as error:
        assert 'formality' in str(error)
    if key:
        try:
            deepl.Translator('wrong', server_url=url).get_usage()
            raise AssertionError('a wrong key was good')
        except deepl.exceptions.AuthorizationException:
            pass


def main():
    url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    for name, client in [('libretranslatepy', libretranslate), ('deepl', deepl_client)]:
        client(url, key)
        print(f'{name}: ok')


if __name__ == '__main__':
    main()
