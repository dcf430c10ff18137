#!/usr/bin/python3
"""A real SMTP server for the tests: aiosmtpd, Debian's python3-aiosmtpd.

usage: smtp_server.py [--starttls|--tls CERTIFICATE KEY] [--login NAME PASSWORD] [--mode MODE] [--quiet]

Prints its port, then one JSON object for each e-mail that it accepts. The local part of a recipient decides on the answer:
`refused` 550, `later` 450, `gone` 421, `hang` none, `hang-data` none to DATA, `hang-end` none to the e-mail, `rejected` 554 to the
e-mail, `slow` accepts after two seconds.

With --quiet it prints no e-mails. Each line of its standard input is a mode: `up`, `down` (greets with 421) or `silent` (does not greet). A change to another mode than
`up` ends all connections. The line `sync` changes nothing; each line is answered once all e-mails before are printed. It ends when its standard input does.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

# Every connection since the last change of the mode.
connections = set()
quiet = False
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
        if local == "hang-end":
            await asyncio.sleep(3600)
        if not quiet:
            print(json.dumps({"from": envelope.mail_from, "to": envelope.rcpt_tos, "content": content,
                              "tls": server.transport.get_extra_info("ssl_object") is not None, "login": session.authenticated}), flush=True)
        if local == "slow":
            await asyncio.sleep(2)
        return "250 2.0.0 accepted"


class Down(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"421 4.3.2 not now\r\n")
        transport.close()


class Silent(asyncio.Protocol):
    def connection_made(self, transport):
        connections.add(transport)


class Server(SMTP):
    def connection_made(self, transport):
        connections.add(transport)
        super().connection_made(transport)

    async def smtp_DATA(self, arg):
        recipients = self.envelope.rcpt_tos if self.envelope else []
        if recipients and recipients[0].startswith("hang-data@"):
            await asyncio.sleep(3600)
        await super().smtp_DATA(arg)


async def main():
    global quiet
    arguments = sys.argv[1:]
    context, implicit, login, mode = None, False, None, "up"
    while arguments:
        option = arguments.pop(0)
        if option in ("--starttls", "--tls"):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(arguments.pop(0), arguments.pop(0))
            implicit = option == "--tls"
        elif option == "--login":
            login = (arguments.pop(0).encode(), arguments.pop(0).encode())
        elif option == "--quiet":
            quiet = True
        elif option == "--mode":
            mode = arguments.pop(0)

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == login, handled=False)

    def protocol():
        if mode != "up":
            return Down() if mode == "down" else Silent()
        starttls = context if not implicit else None
        return Server(Handler(), hostname="localhost", enable_SMTPUTF8=False, tls_context=starttls,
                    require_starttls=starttls is not None, auth_required=login is not None,
                    auth_require_tls=False, authenticator=authenticate if login else None, timeout=60)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if implicit else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = line.strip()
        if answer != "sync":
            mode = answer
        if answer not in ("up", "sync"):
            for connection in connections:
                connection.abort()
            connections.clear()
        print(json.dumps({"mode": answer}), flush=True)


asyncio.run(main())
