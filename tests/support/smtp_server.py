#!/usr/bin/python3
"""A real SMTP server for the tests: aiosmtpd, Debian's python3-aiosmtpd.

usage: smtp_server.py [--starttls|--tls CERTIFICATE KEY] [--login NAME PASSWORD] [--down]

Prints its port, then one JSON object for each e-mail that it accepts. The local part of a recipient decides on the answer:
`refused` 550, `later` 450, `gone` 421, `hang` none, `rejected` 554 to the e-mail, `slow` accepts after two seconds. With --down it
greets with 421. It ends when its standard input does.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

REPLIES = {
    "refused": "550 5.1.1 no such customer\r\n<script>",
    "later": "450 4.2.0 greylisted",
    "gone": "421 4.3.2 shutting down",
}


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        local = address.rsplit("@", 1)[0]
        if local == "hang":
            await asyncio.sleep(3600)
        if local in REPLIES:
            return REPLIES[local].split("\r\n")[0]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        local = envelope.rcpt_tos[0].rsplit("@", 1)[0]
        if local == "rejected":
            return "554 5.7.1 looks like spam"
        content = envelope.content.decode("utf-8", "replace")
        print(json.dumps({"from": envelope.mail_from, "to": envelope.rcpt_tos, "content": content,
                          "tls": session.ssl is not None, "login": session.authenticated}), flush=True)
        if local == "slow":
            await asyncio.sleep(2)
        return "250 2.0.0 accepted"


class Down(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"421 4.3.2 not now\r\n")
        transport.close()


async def main():
    arguments = sys.argv[1:]
    context, implicit, login, down = None, False, None, False
    while arguments:
        option = arguments.pop(0)
        if option in ("--starttls", "--tls"):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(arguments.pop(0), arguments.pop(0))
            implicit = option == "--tls"
        elif option == "--login":
            login = (arguments.pop(0).encode(), arguments.pop(0).encode())
        elif option == "--down":
            down = True

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == login, handled=False)

    def protocol():
        if down:
            return Down()
        starttls = context if not implicit else None
        return SMTP(Handler(), hostname="localhost", enable_SMTPUTF8=False, tls_context=starttls,
                    require_starttls=starttls is not None, auth_required=login is not None,
                    auth_require_tls=False, authenticator=authenticate if login else None, timeout=60)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if implicit else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
