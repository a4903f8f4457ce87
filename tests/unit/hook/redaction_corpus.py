# ruff: noqa: RUF001, E501 - texts of many languages, and keys are long
"""Texts in which people and machines leave personal data and secrets, and texts that only look so.

Written for evalpipe (same licence as the code). No value belongs to anybody: numbers come from documentation, reserved
ranges, or a random generator with their check digits made right, and keys are made up, in the forms of their issuers.

A line is a text; ``<<kind:value>>`` marks what must go. What is not marked must stay. Some marked values are known
to be missed (a bare national phone number, a password in the middle of a sentence): recall is measured, not made.
"""

from __future__ import annotations

import re
from typing import Final

_MARK: Final = re.compile(r"<<(\w+):(.*?)>>")

Marked = tuple[str, list[tuple[int, int, str]]]


def read(lines: str) -> list[Marked]:
    """Each text without its marks, and where they were."""
    texts = []
    for line in lines.strip().splitlines():
        text, spans, done = "", [], 0
        source = line.replace("\\n", "\n")
        for mark in _MARK.finditer(source):
            text += source[done : mark.start()]
            # Keys are written in two halves, so that no scanner of repositories takes them for real ones.
            value = mark[2].replace("~~", "")
            spans.append((len(text), len(text) + len(value), mark[1]))
            text += value
            done = mark.end()
        texts.append((text + source[done:], spans))
    return texts


PERSONAL: Final = """
Please send the invoice to <<email:anna.kowalska@example.pl>> by Friday.
Mein Konto läuft auf <<email:j.mueller+bestellung@post.example.de>>, bitte ändern.
Écrivez à <<email:service-client@boutique.example.fr>> ou passez au magasin.
Mi correo es <<email:lucia_99@correo.example.es>>.
お問い合わせは<<email:tanaka@example.co.jp>> まで
你可以发邮件到 <<email:wang.wei@example.com.cn>> 。
Пишите на <<email:ivan.petrov@example.ru>>, отвечу завтра
{"from": "<<email:o'neill@mail.example.org>>", "subject": "refund"}
From: "Bob" <<<email:bob@sub.domain.example.com>>>
cc <<email:a@b.io>>;<<email:c.d@e.museum>>
mailto:<<email:first.last@example.co.uk>>?subject=hi
Escreva para <<email:joão@exemplo.com.br>> amanhã.
user <<email:1234567@qq.example.com>> has no orders
contact: <<email:UPPER.CASE@EXAMPLE.COM>>.
Skriv till <<email:asa.berg@exempel.se>> eller <<email:info@exempel.se>>.
Contatta <<email:g.rossi@esempio.it>>, grazie; copia a <<email:m-bianchi@esempio.it>>
[<<email:me@example.dev>>](mailto:<<email:me@example.dev>>)
My address is <<email:bob at example dot com>>, write any time
Call me on <<phone:+1 (555) 010-4477>> after five.
Rufen Sie mich unter <<phone:+49 30 901820>> an.
Meine Nummer: <<phone:0151 23456789>>
Tel. <<phone:(030) 9018 2000>>, werktags
Mon portable est le <<phone:06 12 34 56 78>>.
Appelez le <<phone:01.23.45.67.89>> svp
Mi móvil es <<phone:612345678>>
Llame al <<phone:+34 612 345 678>>
Il mio cellulare: <<phone:3471234567>>
Telefoon: <<phone:06 1234 5678>>
(<<phone:555) 010-0199>> or <<phone:555-010-0142>>
toll free <<phone:1-800-555-0199>>
WhatsApp <<phone:+55 11 91234-5678>>
फ़ोन <<phone:+91 98765 43210>>
電話は <<phone:+81 3-1234-5678>> です
call 020 if urgent, else <<phone:020 7946 0958>>
phone=<<phone:5550100123>>&lang=en
My cell is <<phone:555 010 9876>> thanks
telefon <<phone:0048 22 123 45 67>>
Мой телефон: <<phone:+7 495 123-45-67>>
mobile no. <<phone:07700 900123>>
Fax: <<phone:+41 44 668 18 00>>
reach us at <<phone:+442079460958>>.
the number is <<phone:5550100177>> and it is mine
Charge <<card:4111 1111 1111 1111>> exp 12/29
Karte <<card:5555555555554444>> gesperrt
carte <<card:4583-5647-2430-7295>>
número de tarjeta <<card:5112184262342724>>
My Amex is <<card:3429 838611 61994>>
card:<<card:378282246310005>>.
<<card:2221 7503 2000 0838>> declined
pan=<<card:6011088302724363>>;cvv=123
JCB <<card:3530963769986037>>
Diners <<card:36084024328983>>
银联卡 <<card:6237746426630844>>
Maestro <<card:6759632996984613>>
old visa <<card:4965408424265>>
卡号：<<card:4397592244481370637>>
<<card:4242 4242 4242 4242>>, <<card:4000056655665556>>
card 4242 4242\\n4242 4242 (typed over two lines)
My IBAN is <<iban:GB82 WEST 1234 5698 7654 32>>, thanks.
IBAN: <<iban:DE89370400440532013000>>
Überweisen Sie an <<iban:DE89 3704 0044 0532 0130 00>>.
<<iban:FR14 2004 1010 0505 0001 3M02 606>> est mon compte
rekening <<iban:NL91ABNA0417164300>>
cuenta <<iban:ES91 2100 0418 4502 0005 1332>>
conto <<iban:IT60X0542811101000000123456>>
<<iban:CH93 0076 2011 6238 5295 7>>
<<iban:AT611904300234573201>>;<<iban:BE68 5390 0754 7034>>
konto <<iban:PL61 1090 1014 0000 0712 1981 2874>>
<<iban:SE45 5000 0000 0583 9825 7466>>
<<iban:NO9386011117947>> er kontoen
<<iban:DK50 0040 0440 1162 43>> og <<iban:FI2112345600000785>>
NIB <<iban:PT50000201231234567890154>>
<<iban:IE29 AIBK 9311 5212 3456 78>>
<<iban:MT84MALT011000012345MTLCAST001S>>
<<iban:SA0380000000608010167519>> / <<iban:AE07 0331 2345 6789 0123 456>>
<<iban:BR1800360305000010009795493C1>>
<<iban:TR33 0006 1005 1978 6457 8413 26>>
рахунок <<iban:UA213223130000026007233566001>>
{"iban": "<<iban:LU280019400644750000>>"}
<<iban:QA58DOHB00001234567890ABCDEFG>>
<<iban:KW81CBKU0000000000001234560101>>
<<iban:CZ65 0800 0000 1920 0014 5399>>
<<iban:HU42117730161111101800000000>>
<<iban:RO49AAAA1B31007593840000>> cont
iban <<iban:gb82west12345698765432>> in small letters
My SSN is <<id:078-05-1120>>.
social security number <<id:219 09 9999>>
SSN: <<id:457555462>>
ssn=<<id:536-22-1234>>, dob 1990
National Insurance <<id:AB123456C>>
NI no <<id:JG 10 37 59 A>> please
Steuer-ID <<id:86 095 742 719>>
IdNr. <<id:94580730215>>
meine steuerliche Identifikationsnummer lautet <<id:79391089469>>
NIR <<id:2 55 08 14 168 025 38>>
numéro de sécu: <<id:157073054367360>>
sécurité sociale <<id:2021038572619 72>>
Mi DNI es <<id:12345678Z>>
NIE <<id:X1234567L>>, gracias
NIE: <<id:Z-5259692-B>>
dni <<id:41.832.880-C>>
codice fiscale <<id:RSSMRA85T10A562S>>
C.F. <<id:VRDGPP79S16L351F>>
BSN <<id:111222333>>
Mijn burgerservicenummer is <<id:678597509>>
PESEL <<id:44051401359>>
mój numer PESEL: <<id:50112705513>>
CPF <<id:529.982.247-25>>
meu cpf é <<id:52998224725>>
CNPJ <<id:11.222.333/0001-81>>
cnpj: <<id:77213191000102>>
Aadhaar <<id:2341 2341 2346>>
aadhaar no. <<id:353212752463>>
आधार <<id:3029 6660 5645>>
SIN: <<id:761-834-233>>
social insurance number <<id:130 692 544>>
personnummer <<id:811218-9876>>
<<id:19670113-4493>> är mitt personnummer
mitt personnr: <<id:9406201831>>
henkilötunnus <<id:131052-308T>>
hetu <<id:190782-676V>>
fødselsnummer <<id:15076500565>>
fnr <<id:180263 14999>>
rijksregisternummer <<id:85.07.30-033.28>>
numéro de registre national <<id:79062553726>>
AHV-Nummer <<id:756.9217.0769.85>>
N° AVS <<id:7564600379742>>
身份证号 <<id:11010519491231002X>>
身份证：<<id:110101199508021362>>
TC Kimlik No <<id:10000000146>>
id card number <<id:66730553230>> of mine
The server at <<ip:203.0.113.42>> refused me.
client_ip=<<ip:198.51.100.7>> status=500
<<ip:192.168.178.23>> - - [22/Nov/2026:09:15:02 +0000] "GET / HTTP/1.1"
Meine IP ist <<ip:93.184.216.34>>.
http://<<ip:10.20.30.40>>:8080/health
ssh admin@<<ip:172.16.254.1>>
from <<ip:8.8.8.8>> and <<ip:1.1.1.1>>
X-Forwarded-For: <<ip:203.0.113.195>>, <<ip:70.41.3.18>>
{"remote_addr": "<<ip:100.64.12.9>>"}
l'adresse <<ip:203.0.113.9>>, merci
IP地址：<<ip:223.5.5.5>>
dirección IP <<ip:190.12.30.44>>
ping <<ip:2001:db8:85a3::8a2e:370:7334>>
<<ip:2001:0db8:85a3:0000:0000:8a2e:0370:7334>> is my v6
[<<ip:2001:db8::1>>]:443
addr <<ip:fe80::1ff:fe23:4567:890a>> up
<<ip:2a02:8109:9ac0:1b2c:5c1d:aaaa:bbbb:1>>
from=<<ip:::ffff:192.0.2.128>>
route via <<ip:2606:4700:4700::1111>>
the address is <<ip:203.0.113.77>>/32
"""

SECRET: Final = """
export OPENAI_API_KEY=<<key:sk-~~proj-a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
my key is <<key:sk-~~AbCdEfGhIjKlMnOpQrStUvWx>> ok?
<<key:sk-~~ant-api03-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg-AbCdEf_Gh>>
<<key:sk-~~or-v1-0f3a9c1b2d4e5f60718293a4b5c6d7e8f9>>
GROQ: <<key:gsk~~_a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:AIza~~SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q>>
client <<key:GOCSPX~~-a1b2c3d4e5f6g7h8i9j0k1l2m3n4>>
aws_access_key_id = <<key:AKIA~~Q3EGUZ7NRXM2WPLA>>
aws_secret_access_key = <<key:wJalr~~XUtnFEMI/K7MDENG/bPxRfiCYzK3pLe9Q2aB>>
<<key:AKIA~~IOSFODNN7EXAMPLE>> <<key:aB3d~~EfGh1jKlMn0pQrStUvWxYz/1234567890+ab>>
temporary <<key:ASIA~~Y34FZKBOKMUTVV7A>>
AccountName=shop;AccountKey=<<key:Eby8vdM02x~~NOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==>>
AZURE_CLIENT_SECRET: <<key:abC8Q~~~x1y2z3A4B5C6D7E8F9G0H1I2J3K4L5M6N7>>
azure <<key:Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3Ab4Cd5Ef6Gh7J~~JQQJ99BKACYeBjFXJ3w3AAABACOGaB1c>>
Slack bot <<key:xoxb~~-123456789012-1234567890123-AbCdEfGhIjKlMnOp>>
<<key:xapp~~-1-A0123456789-1234567890123-0a1b2c3d4e5f>>
post to https://hooks.slack.com/services/T0000AAAA/B0000BBBB/<<key:a1B2c3D4~~e5F6g7H8i9J0kLmN>>
<<key:ghp~~_a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:github~~_pat_11ABCDEFG0a1B2c3D4e5F6_g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:glpat~~-a1B2c3D4e5F6g7H8i9J0>> for CI
<<key:sk~~_live_4eC39HqLyjWDarjtT1zdp7dc>>
<<key:rk~~_test_51H8a1B2c3D4e5F6g7H8i9>>
<<key:whsec~~_a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuV>>
Twilio <<key:SK~~0123456789abcdef0123456789abcdef>>
<<key:SG.~~a1B2c3D4e5F6g7H8i9J0kL.mNoPqRsTuVwXyZ0123456789a1B2c3D4e5F6g7H8i9J>>
//registry/:_authToken=<<key:npm~~_a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:pypi~~-AgEIcHlwaS5vcmcCJGExYjJjM2Q0LWU1ZjYtNzg5MC1hYmNk>>
<<key:hf~~_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh>>
<<key:dapi~~0123456789abcdef0123456789abcdef>>
<<key:shpat~~_0123456789abcdef0123456789abcdef>>
<<key:nvapi~~-a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:xai~~-a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ>>
<<key:pplx~~-a1b2c3d4e5f6a7b8c9d0e1f2>>
<<key:glsa~~_a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuV_1a2b3c4d>>
bot <<key:123456789:~~AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0>>
token <<key:eyJ~~hbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U>>
Authorization: Bearer <<key:a1b2c3d4~~e5f6g7h8i9j0.k1l2=>>
Authorization: Basic <<key:dXNlcjpw~~YXNzd29yZDEyMw==>>
<<key:-----BEGIN ~~RSA PRIVATE KEY-----\\nMIIEowIBAAKCAQEA7v\\nabc+/=\\n-----END RSA PRIVATE KEY----->>
git clone https://deploy:<<key:hunter2~~pass>>@git.example.com/x.git
postgres://app:<<key:s3cr3t~~!pw>>@db.internal:5432/shop
redis://:<<key:p4ssw0rd~~>>@cache:6379/0
password: <<key:Tr0ub4dor~~&3>>
Mein Passwort: <<key:Sommer~~2026!>> funktioniert nicht
mot de passe : <<key:Azerty~~123!>>
contraseña: <<key:Gato~~Negro77>>
minha senha: <<key:flamengo~~2026>>
{"password": "<<key:correcthorse~~battery>>", "user": "bob"}
DB_PASSWORD=<<key:x9!kLm~~22>>
pwd=<<key:qwerty~~123>>;server=db
api_key: "<<key:0a1b2c3d4e5f~~60718293a4b5c6d7e8f9>>"
apiKey='<<key:0a1b2c3d4e~~5f6071>>'
client_secret=<<key:Zx9Yw8Vu~~7Ts6Rq5>>&grant_type=x
X-Api-Key: <<key:0a1b2c3d~~4e5f6071>>
access_token=<<key:a1B2c3D4e5F6~~g7H8i9J0>>&expires=3600
"refresh_token": "<<key:1//0a1B2c3D4e5F6~~g7H8i9J0kLmNoPqRsTuVw>>"
SECRET_KEY = '<<key:django-insecure-4k^x~~9!z@l2>>'
passphrase=<<key:Blue7~~Whale>>
my password is <<key:Winter~~2026!>>
the password <<key:hunter2>> was my old one
"""

CLEAN: Final = """
Version 1.2.3.4 of the firmware fixes this; v10.0.19041.1 does not.
upgrade to 2.31.0.1, pip install pkg==1.2.3.4, Chrome/120.0.0.0 Safari/537.36
See section 4.3.2.1 and Kapitel 1.2.3.4, figure 2.1.1.3
listen on 127.0.0.1:8000 or 0.0.0.0, mask 255.255.255.0
256.300.1.2 and 1.2.3 are no addresses, 01.02.03.04 neither
at 10:30:00, 23:59:59.123, from 08:00 to 17:30, ratio 16:9:4:3
MAC 00:1A:2B:3C:4D:5E, std::vector<int>::iterator, a::b::c, x[1::2]
Order 1234567890 was placed on 2026-11-22 at 09:15
Bestellnummer 4503926118 vom 22.11.2026 über 1.234,56 EUR
commande n° 20261122-0042, colis 6A12345678901
pedido 000123456789 por 1.299,00 €
订单号 202611221530123456，金额 1,299.00 元
注文番号 249-1234567-8901234 を確認
заказ № 88005553 от 22.11.2026 на сумму 12 345,67 руб.
tracking 1Z999AA10123456784, 9400111899223197428490, RR123456789CN
UPS 1Z12345E0205271688 and FedEx 612999987651
3f2504e0-4f89-11d3-9a0c-0305e82c3301
trace 4bf92f3577b34da6a3ce929d0e0e4736 span 00f067aa0ba902b7
commit 9fceb02d0ae598e95dc970b74767f19372d61af8
sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
etag "33a64df551425fcc55e4d42a148795d9f25f89d4"
ISBN 978-3-16-148410-0 and 0-306-40615-2, ISSN 2049-3630
ISBN 9783161484100, EAN 4006381333931, UPC 036000291452
DOI 10.1000/182, arXiv:2401.12345v2, RFC 9110, ISO 13616-1:2020
price $1,234,567.89, 1 000 000 000 people, 12,345,678 views
3.14159265358979, -73.985130, 40.748817, 6.02214076e23
coordinates 52.520008, 13.404954 and 48°51'29.6"N 2°17'40.2"E
SKU AB-1234-XYZ-5678, part 12345-67890, model GT-I9300
SKU 12345678A, seat 12A, batch B1234567C
serial C02XK0AAJGH5, VIN 1HGBH41JXMN109186, IMEI-ish 35-209900-176148-1
1700000000, 1700000000123, 1705312800 seconds since 1970
2026-11-22T09:15:02.123456Z, 20261122T091502Z, Sun, 22 Nov 2026 09:15:02 GMT
from 2024-01-15 to 2025-12-31, 15/01/2024-31/12/2025, 2019 2020 2021 2022
quantities 100 200 300, rooms 101-102-103, 50 - 100 - 150
error 0x80070005, HTTP 404, errno 111, E_1234567890
GB12 is a postcode area; DE12 3456 is none; FR76 the register
AB12 CDEF 3456 7890 is a licence key of nothing
GB82 WEST 1234 5698 7654 33 has wrong check digits, DE00123456789012345678 too
4111 1111 1111 1112 fails its check digit, 1234 5678 9012 3456 too
5105 1051 0510 5101 is no card, 9999999999999999 neither
123-45-678 and 000-12-3456, 666-12-3456, 912-34-5678 are no social security numbers
12345678A and X1234567A have the wrong letter
RSSMRA85T10A562Z has the wrong letter
reference 123.456.789-00 is not right, 11.222.333/0001-82 neither
811218-9875, 123456-7890 and 20241301-1234 are no personal numbers
131052-308A, 756.9217.0769.86, 2341 2341 2347
phone case for 6 inch, call 3 friends, mobile data 15 GB
dial 112 or 911, room phone 4711, press 1 then 2
score 3-1, 2:0, 24/7, 1/2/2026, win 110-98
within 30 days; 14-day returns; pages 12-345
the 2020-2024 period, 555 people, 1984
an @mention, a@b, x @ y.z, user@localhost, foo@bar, @decorator.method
npm install @scope/package@1.2.3, image:tag@sha256:abcdef
risk-based task-oriented-approach-to-things, a desk-job, ask-me-anything-about-it
sk-learn-style-pipelines-and-transformers, pk-fields
password: please choose a long one
Passwort: mindestens zwölf Zeichen; contraseña: obligatoria; senha: opcional
password: str = None, api_key: Optional[str], token: string
password=os.environ["DB_PASSWORD"], api_key=settings.api_key, secret=get_secret("x")
api_key = "YOUR_API_KEY", token=$TOKEN, password=${DB_PASSWORD}, key=<your key>
"password": "string", "secret": true, "token": null
max_tokens: 4096, total_tokens=1234567, "prompt_tokens": 512, token: 42
key: value, keyboard: qwerty, monkey=banana, primary key: customer_id
the secret: keep it simple; key=lambda x: x[1], sort_key: created_at
passing: 12, compass: north, bypass=1, passenger: Anna
the bearer of this letter, bearer bonds, Basic English for beginners
https://example.com/a/very-long-path-with-many-words-in-it/page_number_12?ref=abc123
https://en.example.org/wiki/Internationalization_and_localization_of_software
https://example.com:8443/@user/posts/1234567890
def get_customer_by_email_address(self, email_address_of_customer): ...
const MAX_RETRY_ATTEMPTS_PER_SECOND = 1000000; // 0b101010101010
SELECT id, created_at FROM orders_2024_archive WHERE total_amount > 1000000
background-color: #ff00ff; margin: 0 0 12px; rgba(0, 128, 255, 0.5)
data-testid="checkout-button-primary-large-1"
Donaudampfschifffahrtsgesellschaftskapitän, Rindfleischetikettierungsüberwachungsaufgabe
supercalifragilisticexpialidocious-and-more-of-it
base64 of a picture: iVBORw0KGgoAAAANSUhEUgAAAAUA
-----BEGIN CERTIFICATE----- is public, -----BEGIN PUBLIC KEY----- too
flight LH 1234, booking ABC123, gate B12, seat 23F, e-ticket 220-1234567890
invoice INV-2026-000123-4567, case #00012345, ticket JIRA-12345
table: 12 34 56 78 | 90 12 34 | 1.5 2.5 3.5
population 8 336 817, GDP 1 234 567 890 000, π ≈ 3,14159
temperature -12.5 °C, 98.6 °F, 1013.25 hPa, 230 V, 50/60 Hz
phi-4-mini-instruct, gpt-4o-mini-2024-07-18, claude-sonnet-4-5-20250929
llama-3.1-8b-instruct-q4_K_M.gguf, text-embedding-3-large-1536
chatcmpl-9f8e7d6c5b4a39281706, resp_68f0c1d2e3b4a5968778695a4b3c2d1e, msg_01XFDUDYJgAACzvnptvVoYEL
call_a1b2c3d4e5f6g7h8, toolu_01A09q90qw90lq917835lq9, run-4f3e2d1c
the ratio 1:2:3:4, verse John 3:16, 1::2 slices, time 12:34:56:78
lot 19980, aisle 7, shelf 000-000-000, bin 0000
win32.user32.dll 10.0.22621.3593, kernel 5.15.0.91, .NET 4.8.1.0
zip 10115 Berlin, 75001 Paris, SW1A 1AA London, 110-0001 Tokyo
you have 3 messages, 2 calls and 1 voicemail from 2026
"""


def texts() -> list[Marked]:
    """All of them."""
    return read(PERSONAL) + read(SECRET) + read(CLEAN)
