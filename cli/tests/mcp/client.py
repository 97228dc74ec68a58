"""Calls the tools of an MCP server with the protocol's official SDK, and prints what came back as JSON.

Arguments: how to agree on a version ("auto" or "legacy"), the program, its arguments. On stdin: a list of [tool, arguments].
Answers are checked against the schemas that the server gives, by the SDK and once more here.
"""

import asyncio
import json
import os
import sys

from jsonschema import Draft202012Validator
from mcp import Client, MCPError, StdioServerParameters


async def call(client, schemas, name, arguments):
    try:
        result = await client.call_tool(name, arguments)
    except MCPError as error:
        return {"code": error.code, "message": str(error)}
    if not result.is_error:
        Draft202012Validator(schemas[name]).validate(result.structured_content)
        assert json.loads(result.content[0].text) == result.structured_content
    return result.model_dump(mode="json", by_alias=True)


async def main():
    mode, program, *arguments = sys.argv[1:]
    server = StdioServerParameters(command=program, args=arguments, env=dict(os.environ))
    async with Client(server, mode=mode) as client:
        tools = (await client.list_tools()).tools
        for tool in tools:
            Draft202012Validator.check_schema(tool.input_schema)
            Draft202012Validator.check_schema(tool.output_schema)
        schemas = {tool.name: tool.output_schema for tool in tools}
        calls = [call(client, schemas, *one) for one in json.load(sys.stdin)]
        answer = {
            "version": client.protocol_version,
            "server": client.server_info.name,
            "instructions": client.instructions,
            "tools": [tool.model_dump(mode="json", by_alias=True) for tool in tools],
            "results": await asyncio.gather(*calls),
        }
        print(json.dumps(answer))


asyncio.run(main())
