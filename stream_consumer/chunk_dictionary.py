"""What the stored events of sessions have in common: the preset dictionary with which zlib compresses their chunks.

A chunk is small, and much of it is the same in all: names of fields, and what browsers say of themselves. With this and
the chunk's own key, a chunk of one event is half as large, one of ten a fifth smaller, and takes no longer. Browsers
will have other versions by then; that does not matter, as zlib finds pieces.

It is a part of the chunks' form for ever: a chunk has its dictionary's checksum, and cannot be read with another one.
(Chunks without a dictionary can be read.) What is used most stands last, where zlib refers to it at the least cost.
"""

CHUNK_DICTIONARY = (
    b'"conversion_currency":"USD"}"conversion_currency":"EUR"}"conversion_type":"order","conversion_value":'
    b'"properties":{"value":"name":"category":"label":"id":"currency":"items":[{"price":"quantity":1,"path":"depth":100}'
    b'"element_id":"","element_tag":"button","element_tag":"a","element_text":"","element_href":"https://www.'
    b'"event_type":"page_exit","event_type":"conversion","event_type":"heartbeat","event_type":"scroll",'
    b'"event_type":"click","title":"","user_id":"'
    b"?utm_source=newsletter&utm_medium=email&utm_campaign=&utm_content=&utm_term=&utm_medium=cpc&gclid=fbclid="
    b'"referrer":"https://www.facebook.com/","referrer":"https://www.bing.com/","referrer":"https://t.co/",'
    b'"referrer":"https://duckduckgo.com/","referrer":"https://www.google.com/",'
    b"Mozilla/5.0 (X11; Linux x86_64; rv:121.0) Gecko/20100101 Firefox/121.0"
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:121.0) Gecko/20100101 Firefox/121.0"
    b"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/23.0"
    b" Chrome/115.0.0.0 Mobile Safari/537.36 Edg/120.0.0.0"
    b"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2"
    b" Safari/605.1.15"
    b"Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2"
    b" Mobile/15E148 Safari/604.1"
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"
    b'","country":"US","language":"en-US","conversion_value":0.0}'
    b'{"event_id":"","site_id":"","session_id":"","event_type":"page_view","timestamp":17,"received_at":17,'
    b'"user_id":"","source":"","seq":1,"page_url":"https://www.","title":"","user_agent":"Mozilla/5.0 ('
)
