// Puppeteer, unmodified. See README.md.

const puppeteer = require('puppeteer-core');
const { main, same, step } = require('./steps.cjs');

const connect = endpoint =>
  step('connect', () => {
    const at = endpoint.startsWith('http') ? { browserURL: endpoint } : { browserWSEndpoint: endpoint };
    return puppeteer.connect({ ...at, defaultViewport: null });
  });

async function work(endpoint, pages) {
  const browser = await connect(endpoint);
  const context = browser.defaultBrowserContext();
  const there = await browser.pages();
  const page = await step('newPage', () => browser.newPage());
  await step('a new session is one blank page, or none', async () => {
    same(there.filter(page => page.url() !== 'about:blank').length, 0);
    for (const page of there) await page.close();
  });
  await step('goto', async () => {
    const response = await page.goto(`${pages}/`);
    same([response.status(), await page.title()], [200, 'index']);
  });
  await step('click', async () => {
    await page.click('#count');
    await page.click('#count');
    same(await page.$eval('#count', button => button.textContent), '2');
  });
  await step('evaluate', async () => same(await page.evaluate(n => n * 7, 6), 42));
  await step('popup', async () => {
    const opened = new Promise(done => page.once('popup', done));
    await page.evaluate(() => void window.open('/popup'));
    const popup = await opened;
    await popup.waitForSelector('#p');
    same(await popup.title(), 'popup');
    await popup.close();
  });
  await step('request interception', async () => {
    await page.setRequestInterception(true);
    const answer = request =>
      request.url().endsWith('/api') ? request.respond({ body: 'from the client' }) : request.continue();
    page.on('request', answer);
    const get = () => page.evaluate(() => fetch('/api').then(response => response.text()));
    same(await get(), 'from the client');
    page.off('request', answer);
    await page.setRequestInterception(false);
    same(await get(), 'from the server');
  });
  await step('createBrowserContext', async () => {
    const other = await browser.createBrowserContext();
    const there = await other.newPage();
    await there.goto(`${pages}/cookie`);
    same((await other.cookies()).map(cookie => cookie.name), ['visited']);
    same((await context.cookies()).map(cookie => cookie.name), []);
    await other.close();
    same(browser.browserContexts().length, 1);
  });
  await step('cookies', async () => {
    await context.setCookie({ name: 'mine', value: '1', domain: '127.0.0.1', path: '/' });
    same((await context.cookies()).map(cookie => cookie.name), ['mine']);
    same(await page.evaluate(() => document.cookie), 'mine=1');
  });
  await step('permissions', () => context.overridePermissions(pages, ['geolocation']));
  await step('screenshot', async () => {
    const picture = Buffer.from(await page.screenshot({ fullPage: true }));
    same(picture.subarray(1, 4).toString(), 'PNG');
  });
  await step('createCDPSession', async () => {
    const session = await page.createCDPSession();
    const { result } = await session.send('Runtime.evaluate', { expression: 'document.title' });
    same(result.value, 'index');
    await session.detach();
  });
  await step('version and targets', async () => {
    same((await browser.version()).includes('Chrome/'), true);
    const kinds = browser.targets().map(target => target.type());
    same(kinds.filter(kind => kind === 'page').length, 1);
  });
  await step('frames', async () => {
    await page.goto(`${pages}/frame`);
    same(await page.frames()[1].title(), 'popup');
  });
  await step('exposeFunction and evaluateOnNewDocument', async () => {
    await page.exposeFunction('twice', n => n * 2);
    await page.evaluateOnNewDocument(() => (window.early = true));
    await page.goto(`${pages}/`);
    same(await page.evaluate(async () => [await window.twice(21), window.early]), [42, true]);
  });
  await step('pdf', async () => same(Buffer.from(await page.pdf()).subarray(0, 4).toString(), '%PDF'));
  await step('leave a page', async () => {
    await page.goto(`${pages}/#kept`);
    await page.type('#text', 'left here');
    await page.evaluate(() => {
      localStorage.kept = 'local';
      sessionStorage.kept = 'session';
    });
  });
  await step('disconnect', () => browser.disconnect());
  await rejoin(endpoint, pages);
}

async function rejoin(endpoint, pages) {
  const browser = await connect(endpoint);
  await step('the same page', async () => {
    const open = (await browser.pages()).filter(page => page.url() !== 'about:blank');
    same(open.map(page => page.url()), [`${pages}/#kept`]);
    const page = open[0];
    same(await page.$eval('#text', input => input.value), 'left here');
    same(await page.evaluate(() => [localStorage.kept, sessionStorage.kept]), ['local', 'session']);
    same((await browser.defaultBrowserContext().cookies()).map(cookie => cookie.name), ['mine']);
  });
  await step('disconnect', () => browser.disconnect());
}

async function killed(endpoint) {
  const browser = await connect(endpoint);
  const page = await step('newPage', () => browser.newPage());
  const gone = new Promise(done => browser.once('disconnected', done));
  const never = page.evaluate(() => new Promise(() => {})).then(
    () => 'answered',
    () => 'failed',
  );
  console.log('ready');
  await step('what waits fails', async () => same(await never, 'failed'));
  await step('disconnected', () => gone);
  await step('later calls fail', async () => {
    same(await page.title().then(() => 'answered', () => 'failed'), 'failed');
  });
}

async function close(endpoint) {
  const browser = await connect(endpoint);
  await step('close', () => browser.close());
}

main({ work, rejoin, killed, close });
